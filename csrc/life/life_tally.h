// What one thread's rows do to a table's life in an update: the same calls as those of TableLife, which reach it when
// this one goes, if not before. Threads that update rows of the same classes and steps would otherwise wait for each
// other at every row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "life/table_life.h"

namespace damo {

class LifeTally {
 public:
  // `alone`: no other thread has rows of this life. REQUIRES: the life's step has begun, and ends after this.
  explicit LifeTally(TableLife* life, bool alone = false) : life_(*life), alone_(alone) {}
  LifeTally(const LifeTally&) = delete;
  LifeTally& operator=(const LifeTally&) = delete;
  ~LifeTally() {
    for (const Sum& sum : sums_) Flush(sum);
    life_.rows_.fetch_add(rows_, std::memory_order_relaxed);
    life_.sighted_.fetch_add(sighted_, std::memory_order_relaxed);
  }

  void Add(RowHeader row, int64_t id) {
    Count(life_.PlaceOfNew(row, id), 1);
    ++rows_;
  }
  void Remove(RowHeader row, int64_t id) {
    Count(life_.Place(row, id), TableLife::kMinusOne);
    --rows_;
  }
  void AddSighting(RowHeader sighting) {
    Count(life_.PlaceOfSighting(sighting), 1);
    ++sighted_;
  }
  void RemoveSighting(RowHeader sighting) {
    Count(life_.PlaceOfSighting(sighting), TableLife::kMinusOne);
    --sighted_;
  }

 private:
  // What a counter is to grow by; numbers wrap.
  struct Sum {
    Counter* counter = nullptr;
    uint64_t n = 0;
  };

  static void Flush(const Sum& sum) {
    if (sum.n != 0) sum.counter->fetch_add(sum.n, std::memory_order_relaxed);
  }
  void Count(Counter* counter, uint64_t n) {
    if (alone_) return counter->store(counter->load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
    Sum& sum = sums_[reinterpret_cast<uintptr_t>(counter) * 0x9E3779B97F4A7C15u >> 56];
    if (sum.counter != counter) {
      Flush(sum);
      sum = {counter, 0};
    }
    sum.n += n;
  }

  static constexpr size_t kSums = 256;  // one of eight bits of a hash

  TableLife& life_;
  const bool alone_;
  std::array<Sum, kSums> sums_{};
  uint64_t rows_ = 0, sighted_ = 0;
};

}  // namespace damo
