#include "testing/system_calls.h"

#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

namespace damo::testing {

std::atomic<SystemCallHook> system_call_hook = nullptr;
std::atomic<size_t> most_bytes_per_write = 0;

namespace {

template <class... Args>
long Call(const char* name, long number, Args... args) {
  const SystemCallHook hook = system_call_hook;
  const int error = hook == nullptr ? 0 : hook(name);
  if (error == 0) return ::syscall(number, args...);
  errno = error;
  return -1;
}

// `position`: of the write in its file, or nothing.
template <class... Position>
ssize_t Write(long number, int fd, const void* bytes, size_t size, Position... position) {
  const size_t most = most_bytes_per_write;
  if (fd <= STDERR_FILENO || most == 0) {
    return fd <= STDERR_FILENO ? ::syscall(number, fd, bytes, size, position...)
                               : Call("write", number, fd, bytes, size, position...);
  }
  const int flags = ::fcntl(fd, F_GETFL);
  const size_t at = (static_cast<size_t>(position) | ... | static_cast<size_t>(::lseek(fd, 0, SEEK_CUR)));
  if ((flags & O_DIRECT) != 0 && (at | size) % 512 != 0) {
    errno = EINVAL;
    return -1;
  }
  ::fcntl(fd, F_SETFL, flags & ~O_DIRECT);  // for a part that ends anywhere
  const ssize_t written = Call("write", number, fd, bytes, size > most ? most : size, position...);
  ::fcntl(fd, F_SETFL, flags);
  return written;
}

}  // namespace
}  // namespace damo::testing

// In place of the C library's, for the libraries that the tests link, too.
using damo::testing::Call;
#define DAMO_EXPORT extern "C" [[gnu::visibility("default")]]

DAMO_EXPORT ssize_t write(int fd, const void* bytes, size_t size) {
  return damo::testing::Write(SYS_write, fd, bytes, size);
}
DAMO_EXPORT ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  return damo::testing::Write(SYS_pwrite64, fd, bytes, size, offset);
}
DAMO_EXPORT int fsync(int fd) { return static_cast<int>(Call("fsync", SYS_fsync, fd)); }
DAMO_EXPORT int link(const char* from, const char* to) noexcept {
  return static_cast<int>(Call("link", SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0));
}
DAMO_EXPORT int mkdir(const char* path, mode_t mode) noexcept {
  return static_cast<int>(Call("mkdir", SYS_mkdirat, AT_FDCWD, path, mode));
}
DAMO_EXPORT int nanosleep(const timespec* duration, timespec* left) {
  const bool polls = duration->tv_sec == 0 && duration->tv_nsec < 10'000'000;
  return static_cast<int>(polls ? ::syscall(SYS_nanosleep, duration, left)
                                : Call("nanosleep", SYS_nanosleep, duration, left));
}
DAMO_EXPORT ssize_t sendfile(int to, int from, off_t* offset, size_t size) noexcept {
  return Call("sendfile", SYS_sendfile, to, from, offset, size);
}
