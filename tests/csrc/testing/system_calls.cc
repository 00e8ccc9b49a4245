#include "testing/system_calls.h"

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace damo::testing {

std::atomic<SystemCallHook> system_call_hook = nullptr;

namespace {

template <class... Args>
long Call(const char* name, long number, Args... args) {
  const SystemCallHook hook = system_call_hook;
  const int error = hook == nullptr ? 0 : hook(name);
  if (error == 0) return ::syscall(number, args...);
  errno = error;
  return -1;
}

}  // namespace
}  // namespace damo::testing

// In place of the C library's, for the libraries that the tests link, too.
using damo::testing::Call;
#define DAMO_EXPORT extern "C" [[gnu::visibility("default")]]

DAMO_EXPORT ssize_t write(int fd, const void* bytes, size_t size) {
  return fd <= STDERR_FILENO ? ::syscall(SYS_write, fd, bytes, size) : Call("write", SYS_write, fd, bytes, size);
}
DAMO_EXPORT int fsync(int fd) { return static_cast<int>(Call("fsync", SYS_fsync, fd)); }
DAMO_EXPORT int link(const char* from, const char* to) noexcept {
  return static_cast<int>(Call("link", SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
DAMO_EXPORT int mkdir(const char* path, mode_t mode) noexcept {
  return static_cast<int>(Call("mkdir", SYS_mkdirat, AT_FDCWD, path, mode));
}
DAMO_EXPORT ssize_t sendfile(int to, int from, off_t* offset, size_t size) noexcept {
  return Call("sendfile", SYS_sendfile, to, from, offset, size);
}
