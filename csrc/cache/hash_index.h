// The cache's index: an open-addressing hash table with linear probing from a row's tag to its slot. The table keeps no
// keys: the caller compares them in the row, which it is about to read anyway.
//
// An entry is 8 bytes: the tag (the upper 32 bits of the key's hash) above the slot. A tag also tells its home
// position, so that entries can be moved, and the whole table grown, without touching any row.
#pragma once

#include <cstdint>
#include <utility>

#include "base/huge_pages.h"
#include "row/row.h"

namespace damo {

// The tag of (table, id). Two rounds of multiply and fold: strided and clustered ids spread evenly.
inline uint32_t HashTag(uint16_t table, int64_t id) {
  uint64_t h = static_cast<uint64_t>(id) + (uint64_t{table} + 1) * 0x9E3779B97F4A7C15ull;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93ull;
  h = (h ^ (h >> 32)) * 0xD6E8FEB86659FD93ull;
  return static_cast<uint32_t>(h >> 32);
}

// Concurrent Find and Prefetch are safe; anything else needs exclusive access.
class HashIndex {
 public:
  static constexpr double kMaxLoad = 0.7;

  // Room for `rows` entries. Throws std::bad_alloc.
  explicit HashIndex(size_t rows)
      : capacity_(static_cast<size_t>(static_cast<double>(rows) / kMaxLoad) + 16),
        pages_(AllocatePages(capacity_ * sizeof(uint64_t))),
        entries_(static_cast<uint64_t*>(pages_.get())) {}

  static size_t BytesFor(size_t rows) { return static_cast<size_t>(static_cast<double>(rows) / kMaxLoad) * 8 + 128; }

  size_t capacity() const { return capacity_; }
  size_t size() const { return size_; }

  void Prefetch(uint32_t tag) const { __builtin_prefetch(&entries_[Home(tag)]); }

  // The first slot under `tag` for which `matches(slot)` holds, or kMissingSlot.
  template <class Matches>
  Slot Find(uint32_t tag, Matches matches) const {
    for (size_t i = Home(tag); entries_[i] != 0; i = Next(i)) {
      if (Tag(entries_[i]) == tag && matches(SlotOf(entries_[i]))) return SlotOf(entries_[i]);
    }
    return kMissingSlot;
  }

  // REQUIRES: no equal key is in the table, and fewer entries than it was made for.
  void Insert(uint32_t tag, Slot slot) {
    size_t i = Home(tag);
    while (entries_[i] != 0) i = Next(i);
    entries_[i] = Entry(tag, slot);
    ++size_;
  }

  // REQUIRES: (tag, from) is in the table.
  void Replace(uint32_t tag, Slot from, Slot to) { entries_[Position(tag, from)] = Entry(tag, to); }

  // Closes the gap by moving later entries of the run towards their homes, so that the table has no tombstones.
  // REQUIRES: (tag, slot) is in the table.
  void Erase(uint32_t tag, Slot slot) {
    size_t gap = Position(tag, slot);
    for (size_t i = Next(gap); entries_[i] != 0; i = Next(i)) {
      const size_t home = Home(Tag(entries_[i]));
      const bool home_in_gap_to_i = gap < i ? (gap < home && home <= i) : (gap < home || home <= i);
      if (home_in_gap_to_i) continue;
      entries_[gap] = entries_[i];
      gap = i;
    }
    entries_[gap] = 0;
    --size_;
  }

  // Inserts every entry of `other`.
  void InsertAll(const HashIndex& other) {
    for (size_t i = 0; i < other.capacity_; ++i) {
      if (other.entries_[i] != 0) Insert(Tag(other.entries_[i]), SlotOf(other.entries_[i]));
    }
  }

 private:
  static uint64_t Entry(uint32_t tag, Slot slot) { return uint64_t{tag} << 32 | slot; }
  static uint32_t Tag(uint64_t entry) { return static_cast<uint32_t>(entry >> 32); }
  static Slot SlotOf(uint64_t entry) { return static_cast<Slot>(entry); }
  size_t Home(uint32_t tag) const { return (uint64_t{tag} * capacity_) >> 32; }
  size_t Next(size_t i) const { return i + 1 == capacity_ ? 0 : i + 1; }
  size_t Position(uint32_t tag, Slot slot) const {
    size_t i = Home(tag);
    while (entries_[i] != Entry(tag, slot)) i = Next(i);
    return i;
  }

  size_t capacity_;
  size_t size_ = 0;
  Pages pages_;
  uint64_t* entries_;
};

}  // namespace damo
