// A file that is read once, from its beginning to its end: a thread of its own reads the next bytes while the caller
// works on those before.
#pragma once

#include <array>
#include <cstddef>
#include <future>
#include <string>
#include <string_view>

#include "base/files.h"

namespace damo {

// Not thread-safe. Throws kIo, and kCorruption if it is no regular file.
class ReadAheadFile {
 public:
  // Past the page cache where the file system can do that. REQUIRES: `buffer_bytes`, of which it takes twice as many,
  // is a multiple of kDirectAlignment.
  ReadAheadFile(const std::string& path, size_t buffer_bytes);

  // The next `buffer_bytes`, fewer at the end of the file, and none behind it. They stay until the next call.
  std::string_view Next();

 private:
  void ReadAhead();
  size_t Fill(char* buffer);

  File file_;
  const size_t buffer_bytes_;
  std::array<AlignedBuffer, 2> buffers_;
  size_t ahead_ = 0;          // the buffer that is being filled
  std::future<size_t> size_;  // of it. Destroyed first: it waits for the thread
};

}  // namespace damo
