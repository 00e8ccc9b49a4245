#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

#include "status.h"

namespace damo {
namespace {

[[noreturn]] void Throw(int error, const std::string& what, const std::string& path) {
  const ErrorCode code = error == ENOSPC || error == EDQUOT ? ErrorCode::kOutOfSpace
                         : error == EEXIST                  ? ErrorCode::kInvalidArgument
                                                            : ErrorCode::kIo;
  throw Error(code, what + " " + path + ": " + std::generic_category().message(error));
}

class FileDescriptor {
 public:
  FileDescriptor(const std::string& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (fd_ < 0) Throw(errno, "cannot open", path);
  }
  ~FileDescriptor() { ::close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

void Sync(const std::string& path) {
  FileDescriptor file(path, O_RDONLY);
  if (::fsync(file.get()) != 0) Throw(errno, "cannot sync", path);
}

void WriteFile(const std::string& path, std::string_view contents) {
  {
    FileDescriptor file(path, O_WRONLY | O_CREAT | O_EXCL);
    while (!contents.empty()) {
      const ssize_t n = ::write(file.get(), contents.data(), contents.size());
      if (n < 0 && errno != EINTR) Throw(errno, "cannot write", path);
      if (n > 0) contents.remove_prefix(static_cast<size_t>(n));
    }
  }
  Sync(path);
}

void CopyFile(const std::string& from, const std::string& to, uint64_t size) {
  std::error_code error;
  std::filesystem::copy_file(from, to, error);
  const uint64_t copied = error ? 0 : std::filesystem::file_size(to, error);
  if (!error && copied < size) {
    throw Error(ErrorCode::kIo, "cannot copy " + from + ": expected " + std::to_string(size) + " bytes, found " +
                                    std::to_string(copied));
  }
  if (!error && copied > size) std::filesystem::resize_file(to, size, error);
  if (error) Throw(error.value(), "cannot copy " + from + " to", to);
  Sync(to);
}

bool LinkFile(const std::string& from, const std::string& to) {
  if (::link(from.c_str(), to.c_str()) == 0) return true;
  if (errno == EXDEV || errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS || errno == EMLINK) return false;
  Throw(errno, "cannot link " + from + " to", to);
}

void BuildDirectory(const std::string& path, const std::function<void()>& fill) {
  if (::mkdir(path.c_str(), 0777) != 0) Throw(errno, "cannot make the directory", path);
  try {
    fill();
    Sync(path);
    Sync(path + "/..");
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
    throw;
  }
}

}  // namespace damo
