// A table's life with its rows counted anew: whether it is right, and what it is of the rows that a damaged table has
// left. And the same without some of its rows, which takes no look at the others.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "life/life_bytes.h"
#include "life/table_life.h"
#include "row/ladder.h"

namespace damo {

class LifeRecount {
 public:
  // `bytes`: as TableLife::Serialize left it. `iter`: the table's, which no row's last step is above; the life may be
  // of an earlier one. Throws kCorruption.
  LifeRecount(std::string_view bytes, uint32_t iter) : LifeRecount(DecodeLife(bytes), iter) {}

  // Counts a row, or an id that was seen and has none. Returns whether it lives.
  bool Count(RowHeader header, int64_t id, bool sighting);

  uint64_t rows() const { return life_.rows(); }
  uint64_t rows_before() const { return rows_before_; }
  std::string Serialize() const { return life_.Serialize(); }

 private:
  LifeRecount(const LifeState& state, uint32_t iter);

  const uint64_t rows_before_;
  TableLife life_;
};

class LifeWithout {
 public:
  // `bytes`: as TableLife::Serialize left it. Throws kCorruption.
  explicit LifeWithout(std::string_view bytes) : LifeWithout(DecodeLife(bytes)) {}

  // Takes out a row, or an id that was seen and has none. Returns whether it lived: what is dead is not counted anyway.
  // Throws kCorruption if the life counts nothing of the kind.
  bool Remove(RowHeader header, int64_t id, bool sighting);

  uint64_t rows() const { return life_.rows(); }
  std::string Serialize() const { return life_.Serialize(); }

 private:
  explicit LifeWithout(const LifeState& state);

  TableLife life_;
};

}  // namespace damo
