// Where the rows of a table stand that has had no life until now: a sample of them, chosen by their ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "row/position.h"
#include "row/row_header.h"

namespace damo {

class RowSample {
 public:
  void Add(RowHeader row, int64_t id);

  // At most so many positions, ascending, between which there are about as many rows.
  std::vector<Position> Edges(size_t most) const;

 private:
  static constexpr size_t kMost = 32'768;

  uint64_t passed_over_ = 0;                         // ids with any of these bits in their hash
  std::vector<std::pair<uint64_t, Position>> rows_;  // with the hashes of their ids
};

}  // namespace damo
