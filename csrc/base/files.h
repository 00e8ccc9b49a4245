// The few file operations that durability needs. All throw kOutOfSpace if the disk or a quota is full, kInvalidArgument
// if something exists that was to be made, kCorruption if a file turns out to be a link, a FIFO or a device, else kIo;
// messages name the path and give the system's reason. Nothing follows a link or waits for a FIFO.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace damo {

// Whether links that are opened are followed, to a regular file.
enum class Links { kRefuse, kFollow };

// What is at `path` if neither a regular file nor nothing is, "a symbolic link" for one; else "".
std::string OddFileAt(const std::string& path, Links links = Links::kRefuse);

// Throws kCorruption if there is such a thing, else returns `path`.
const std::string& CheckRegular(const std::string& path);

// An open file, or a directory.
class File {
 public:
  // `flags` are those of open(2).
  File(const std::string& path, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void Write(std::string_view bytes);
  void WriteAt(std::string_view bytes, uint64_t offset);
  // Reads the next bytes, at most `size`; 0 at the end. REQUIRES: no SetDirect, or as that says.
  size_t Read(char* to, size_t size);
  // Waits until its bytes, or the directory's entries, are on the device.
  void Sync();
  // Reserves space for its first `size` bytes. False if there is none; true, too, where the system cannot tell.
  bool Allocate(uint64_t size);
  // Whether reads and writes are to bypass the page cache. If so, REQUIRES: they are aligned, in memory and in the
  // file, to kDirectAlignment. False if the file system cannot. Where the system reads or writes a part that is not so,
  // at the end of a file for one, it ends that.
  bool SetDirect(bool direct);

 private:
  template <class F>
  void WriteAll(std::string_view bytes, F write);

  const std::string path_;
  const int fd_;
  bool direct_ = false;
};

inline constexpr size_t kDirectAlignment = 4096;

struct FreeAligned {
  void operator()(char* bytes) const { std::free(bytes); }
};
using AlignedBuffer = std::unique_ptr<char, FreeAligned>;

// Memory at a multiple of kDirectAlignment. REQUIRES: `bytes` is one, too. Throws std::bad_alloc.
AlignedBuffer AllocateAligned(size_t bytes);

// A file that is written through a buffer, from its beginning to its end.
class FileWriter {
 public:
  // With `direct`, past the page cache where the file system can do that: for what will hardly be read again.
  // REQUIRES: `path` does not exist; `buffer_bytes` is a multiple of kDirectAlignment.
  FileWriter(const std::string& path, size_t buffer_bytes, bool direct = false);

  void Append(std::string_view bytes);
  // Writes what is in the buffer and waits until all is on the device. Nothing may follow.
  void Finish();

 private:
  const size_t buffer_bytes_;
  AlignedBuffer buffer_;
  size_t buffered_ = 0;
  File file_;  // which is made last: without memory for the buffer there is none
};

// Waits until the file's bytes, or the directory's entries, are on the device.
void Sync(const std::string& path);

// Makes a synced file of these bytes. REQUIRES: `path` does not exist.
void WriteFile(const std::string& path, std::string_view contents);

// Writes these bytes behind those that the file has; makes it if it does not exist. Not synced.
void AppendToFile(const std::string& path, std::string_view bytes);

// Reads a file's first `size` bytes. REQUIRES: it has so many.
void ReadFile(const std::string& path, char* to, size_t size);

// Makes a synced copy of a file's first `size` bytes. REQUIRES: `to` does not exist, `from` has at least `size` bytes.
void CopyFile(const std::string& from, const std::string& to, uint64_t size);

// Whether a file of `bytes` can be made at `path`; leaves none. REQUIRES: `path` does not exist.
bool HasSpace(const std::string& path, uint64_t bytes);

// What the regular files in a directory and those below it hold, those with several names there once. What cannot be
// looked at, or is removed meanwhile, is nothing.
uint64_t BytesOfFiles(const std::string& directory);

// Makes `to` a second name of the file `from`. False if the file system cannot: another device, no hard links, too
// many.
bool LinkFile(const std::string& from, const std::string& to);

// Makes the directory `path`, has `fill` fill it, and syncs it and its parent. If anything throws, removes it again.
// REQUIRES: `path` does not exist, its parent does.
void BuildDirectory(const std::string& path, const std::function<void()>& fill);

}  // namespace damo
