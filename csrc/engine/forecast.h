// How many bytes of rows the next call of a kind will probably load, with some to spare.
#pragma once

#include <algorithm>
#include <cstddef>

namespace damo {

class Forecast {
 public:
  size_t expected() const { return bytes_; }
  // The last one has loaded so many.
  void Note(size_t bytes) { bytes_ = std::max(bytes + bytes / 8, bytes_ - bytes_ / 8); }

 private:
  size_t bytes_ = 0;
};

}  // namespace damo
