#include "base/read_ahead.h"

#include <fcntl.h>

namespace damo {

ReadAheadFile::ReadAheadFile(const std::string& path, size_t buffer_bytes)
    : file_(CheckRegular(path), O_RDONLY),
      buffer_bytes_(buffer_bytes),
      buffers_{AllocateAligned(buffer_bytes), AllocateAligned(buffer_bytes)} {
  file_.SetDirect(true);
  ReadAhead();
}

std::string_view ReadAheadFile::Next() {
  if (!size_.valid()) return {};
  const std::string_view bytes(buffers_[ahead_].get(), size_.get());
  ahead_ = 1 - ahead_;
  if (bytes.size() == buffer_bytes_) ReadAhead();
  return bytes;
}

void ReadAheadFile::ReadAhead() {
  // Where the system has no more threads, Next reads.
  size_ = std::async(std::launch::async | std::launch::deferred, [this] { return Fill(buffers_[ahead_].get()); });
}

size_t ReadAheadFile::Fill(char* buffer) {
  size_t size = 0;
  while (size < buffer_bytes_) {
    const size_t n = file_.Read(buffer + size, buffer_bytes_ - size);
    if (n == 0) break;
    size += n;
  }
  return size;
}

}  // namespace damo
