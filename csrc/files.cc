#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "status.h"

namespace damo {
namespace {

[[noreturn]] void Throw(int error, const std::string& what, const std::string& path) {
  const ErrorCode code = error == ENOSPC || error == EDQUOT || error == EFBIG ? ErrorCode::kOutOfSpace
                         : error == EEXIST                                    ? ErrorCode::kInvalidArgument
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

void Write(const FileDescriptor& file, std::string_view contents, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t n = ::write(file.get(), contents.data(), contents.size());
    if (n < 0 && errno != EINTR) Throw(errno, "cannot write", path);
    if (n > 0) contents.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace

void Sync(const std::string& path) {
  FileDescriptor file(path, O_RDONLY);
  if (::fsync(file.get()) != 0) Throw(errno, "cannot sync", path);
}

void WriteFile(const std::string& path, std::string_view contents) {
  {
    FileDescriptor file(path, O_WRONLY | O_CREAT | O_EXCL);
    Write(file, contents, path);
  }
  Sync(path);
}

// std::filesystem::copy_file tells of a full disk as an input/output error.
void CopyFile(const std::string& from, const std::string& to, uint64_t size) {
  {
    FileDescriptor source(from, O_RDONLY);
    FileDescriptor target(to, O_WRONLY | O_CREAT | O_EXCL);
    std::vector<char> buffer(size_t{1} << 20);
    uint64_t copied = 0;
    while (copied < size) {
      const ssize_t n = ::read(source.get(), buffer.data(), std::min<uint64_t>(size - copied, buffer.size()));
      if (n < 0 && errno != EINTR) Throw(errno, "cannot read", from);
      if (n == 0) {
        throw Error(ErrorCode::kIo, "cannot copy " + from + ": expected " + std::to_string(size) + " bytes, found " +
                                        std::to_string(copied));
      }
      if (n <= 0) continue;
      Write(target, {buffer.data(), static_cast<size_t>(n)}, to);
      copied += static_cast<uint64_t>(n);
    }
  }
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
