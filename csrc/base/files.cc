#include "base/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/status.h"

namespace damo {
namespace {

constexpr char kDirectory[] = "a directory";

[[noreturn]] void Throw(int error, const std::string& what, const std::string& path) {
  const ErrorCode code = error == ENOSPC || error == EDQUOT || error == EFBIG ? ErrorCode::kOutOfSpace
                         : error == EEXIST                                    ? ErrorCode::kInvalidArgument
                                                                              : ErrorCode::kIo;
  throw Error(code, what + " " + path + ": " + std::generic_category().message(error));
}

int Open(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
  const int error = errno;
  struct stat status;
  if (fd >= 0 && ::fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return fd;
  if (fd >= 0) ::close(fd);
  if (OddFileAt(path) != kDirectory) CheckRegular(path);
  Throw(fd >= 0 ? EINVAL : error, "cannot open", path);
}

std::string Shortfall(uint64_t expected, uint64_t found) {
  return "expected " + std::to_string(expected) + " bytes, found " + std::to_string(found);
}

}  // namespace

std::string OddFileAt(const std::string& path, Links links) {
  struct stat status;
  if ((links == Links::kFollow ? ::stat : ::lstat)(path.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return "";
  if (S_ISLNK(status.st_mode)) return "a symbolic link";
  if (S_ISDIR(status.st_mode)) return kDirectory;
  return S_ISFIFO(status.st_mode) ? "a FIFO" : "a socket or a device";
}

const std::string& CheckRegular(const std::string& path) {
  const std::string found = OddFileAt(path);
  if (found.empty()) return path;
  throw Error(ErrorCode::kCorruption, path + ": expected a regular file, found " + found);
}

File::File(const std::string& path, int flags) : path_(path), fd_(Open(path, flags)) {}

File::~File() { ::close(fd_); }

// Calls write(bytes), which returns how many were written, until all are.
template <class F>
void File::WriteAll(std::string_view bytes, F write) {
  while (!bytes.empty()) {
    const ssize_t n = write(bytes);
    if (n < 0 && errno != EINTR) Throw(errno, "cannot write " + std::to_string(bytes.size()) + " more bytes to", path_);
    if (n <= 0) continue;
    bytes.remove_prefix(static_cast<size_t>(n));
    if (direct_ && static_cast<size_t>(n) % kDirectAlignment != 0) SetDirect(false);
  }
}

void File::Write(std::string_view bytes) {
  WriteAll(bytes, [&](std::string_view left) { return ::write(fd_, left.data(), left.size()); });
}

void File::WriteAt(std::string_view bytes, uint64_t offset) {
  WriteAll(bytes, [&](std::string_view left) {
    return ::pwrite(fd_, left.data(), left.size(), static_cast<off_t>(offset + bytes.size() - left.size()));
  });
}

size_t File::Read(char* to, size_t size) {
  for (;;) {
    const ssize_t n = ::read(fd_, to, size);
    if (n < 0 && errno == EINVAL && direct_ && SetDirect(false)) continue;  // a file system that only says it can
    if (n < 0 && errno != EINTR) Throw(errno, "cannot read", path_);
    if (n < 0) continue;
    if (direct_ && static_cast<size_t>(n) % kDirectAlignment != 0) SetDirect(false);
    return static_cast<size_t>(n);
  }
}

void File::Sync() {
  if (::fsync(fd_) != 0) Throw(errno, "cannot sync", path_);
}

bool File::Allocate(uint64_t size) {
#ifdef __linux__
  return ::fallocate(fd_, 0, 0, static_cast<off_t>(size)) == 0 || errno == EOPNOTSUPP || errno == ENOSYS;
#else
  return true;
#endif
}

bool File::SetDirect(bool direct) {
#ifdef O_DIRECT
  const int flags = ::fcntl(fd_, F_GETFL);
  const bool done = flags >= 0 && ::fcntl(fd_, F_SETFL, direct ? flags | O_DIRECT : flags & ~O_DIRECT) == 0;
  if (done) direct_ = direct;
  return done;
#else
  return !direct;
#endif
}

AlignedBuffer AllocateAligned(size_t bytes) {
  AlignedBuffer buffer(static_cast<char*>(std::aligned_alloc(kDirectAlignment, bytes)));
  if (buffer == nullptr) throw std::bad_alloc();
  return buffer;
}

FileWriter::FileWriter(const std::string& path, size_t buffer_bytes, bool direct)
    : buffer_bytes_(buffer_bytes), buffer_(AllocateAligned(buffer_bytes)), file_(path, O_WRONLY | O_CREAT | O_EXCL) {
  if (direct) file_.SetDirect(true);
}

void FileWriter::Append(std::string_view bytes) {
  while (!bytes.empty()) {
    if (buffered_ == buffer_bytes_) {
      file_.Write({buffer_.get(), buffered_});
      buffered_ = 0;
    }
    const size_t n = std::min(bytes.size(), buffer_bytes_ - buffered_);
    std::memcpy(buffer_.get() + buffered_, bytes.data(), n);
    buffered_ += n;
    bytes.remove_prefix(n);
  }
}

void FileWriter::Finish() {
  file_.SetDirect(false);  // the end need not be aligned
  file_.Write({buffer_.get(), buffered_});
  buffered_ = 0;
  file_.Sync();
}

void Sync(const std::string& path) { File(path, O_RDONLY).Sync(); }

void WriteFile(const std::string& path, std::string_view contents) {
  File file(path, O_WRONLY | O_CREAT | O_EXCL);
  file.Write(contents);
  file.Sync();
}

void AppendToFile(const std::string& path, std::string_view bytes) {
  File(path, O_WRONLY | O_CREAT | O_APPEND).Write(bytes);
}

void ReadFile(const std::string& path, char* to, size_t size) {
  File file(path, O_RDONLY);
  for (size_t done = 0; done < size;) {
    const size_t n = file.Read(to + done, size - done);
    if (n == 0) throw Error(ErrorCode::kIo, "cannot read " + path + ": " + Shortfall(size, done));
    done += n;
  }
}

// std::filesystem::copy_file tells of a full disk as an input/output error.
void CopyFile(const std::string& from, const std::string& to, uint64_t size) {
  File source(from, O_RDONLY);
  File target(to, O_WRONLY | O_CREAT | O_EXCL);
  std::vector<char> buffer(size_t{1} << 20);
  for (uint64_t copied = 0; copied < size;) {
    const size_t n = source.Read(buffer.data(), std::min<uint64_t>(size - copied, buffer.size()));
    if (n == 0) throw Error(ErrorCode::kIo, "cannot copy " + from + ": " + Shortfall(size, copied));
    target.Write({buffer.data(), n});
    copied += n;
  }
  target.Sync();
}

bool HasSpace(const std::string& path, uint64_t bytes) {
  static constexpr std::array<char, kDirectAlignment> kZeros{};
  bool fits = false;
  try {
    File file(path, O_WRONLY | O_CREAT | O_EXCL);
    file.Write({kZeros.data(), kZeros.size()});
    fits = file.Allocate(bytes);
  } catch (const Error&) {  // it does not
  }
  ::unlink(path.c_str());
  return fits;
}

uint64_t BytesOfFiles(const std::string& directory) {
  std::set<std::pair<dev_t, ino_t>> shared;
  uint64_t bytes = 0;
  std::vector<std::string> directories = {directory};
  while (!directories.empty()) {
    std::error_code error;
    std::filesystem::directory_iterator file(directories.back(), error);
    directories.pop_back();
    for (; !error && file != std::filesystem::directory_iterator(); file.increment(error)) {
      struct stat status;
      if (::lstat(file->path().c_str(), &status) != 0) continue;
      if (S_ISDIR(status.st_mode)) directories.push_back(file->path().string());
      if (!S_ISREG(status.st_mode)) continue;
      if (status.st_nlink > 1 && !shared.emplace(status.st_dev, status.st_ino).second) continue;
      bytes += static_cast<uint64_t>(status.st_size);
    }
  }
  return bytes;
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
