// Making room in the cache: which rows go, and that what they hold is written first.

#include <exception>
#include <string>
#include <utility>

#include "base/status.h"
#include "engine/store.h"

namespace damo {

// MakeRoom that keeps the rows that `units` have found, and their slots valid.
void Store::MakeRoomAround(std::span<const Unit> units, size_t bytes, Lock& lock) {
  if (!cache_.NeedsEviction(bytes)) return;
  const auto for_each_found = [&](auto f) {
    for (const Unit& unit : units) {
      for (size_t i = 0; i < unit.num_ids(); ++i) {
        Slot& slot = unit.slots()[i];
        if (slot != kMissingSlot && slot != kZeroSlot) f(unit.feature->table, unit.ids()[i], slot);
      }
    }
  };
  const auto unpin = [&](uint16_t table, int64_t id, Slot& slot) {
    slot = cache_.Find(HashTag(table, id), table, id);
    if (slot != kMissingSlot) cache_.UnpinRow(slot);  // else a prefetch has failed to bring it
  };
  for_each_found([&](uint16_t, int64_t, Slot& slot) { cache_.PinRow(slot); });
  try {
    MakeRoom(bytes, lock);
  } catch (...) {
    for_each_found(unpin);
    throw;
  }
  for_each_found(unpin);
}

// MakeRoom as far as it costs no row that is awaited. Throws only what writing throws.
void Store::MakeSpareRoom(size_t bytes, Lock& lock) {
  // Twice around: what is used often survives the first time.
  for (size_t rounds = 2 * cache_.SegmentsInUse().size(); rounds > 0; --rounds) {
    if (!cache_.NeedsEviction(bytes) || cache_.spare_segments() == 0) return;
    EvictFirst(cache_.NextVictims(8), lock);
  }
}

// Evicts until `bytes` of rows can be added, writing what is dirty.
void Store::MakeRoom(size_t bytes, Lock& lock) {
  // Each round frees memory, or takes a use from every row it keeps and raises the bar for frequent ones.
  const size_t all = cache_.SegmentsInUse().size() + 2;
  size_t rounds = 6 * all;
  while (cache_.NeedsEviction(bytes)) {
    // Once around in vain: the call under way comes before those that rows were prefetched for.
    if (rounds == 5 * all) ForgetAwaited();
    const std::vector<uint32_t> victims = cache_.NextVictims(8);
    if (victims.empty() || rounds-- == 0) {
      const size_t mebibytes = ((options_.memory_budget + bytes + bytes / 2) >> 20) + 1;
      throw Error(ErrorCode::kInvalidArgument, "a batch needs more rows in memory at once than memory_budget (" +
                                                   std::to_string(options_.memory_budget) + " bytes, of which " +
                                                   std::to_string(cache_.row_capacity_bytes()) +
                                                   " hold rows) allows: it should be at least \"" +
                                                   std::to_string(mebibytes) + "MiB\"");
    }
    EvictFirst(victims, lock);
  }
}

void Store::RaiseTrimError() {
  if (trim_error_) std::rethrow_exception(std::exchange(trim_error_, nullptr));
}

// Keeps the cache to the size that tests ask for. What cannot be written stays, and the next call raises the error: the
// one that comes to its end here has done its work.
void Store::Trim(Lock& lock) {
  if (cache_.resident_limit() == 0) return;
  try {
    while (cache_.resident_bytes() > cache_.resident_limit() + AwaitedBytes()) {
      cache_.Seal();
      const std::vector<uint32_t> victims = cache_.NextVictims(1);
      if (victims.empty()) return;
      EvictFirst(victims, lock);
    }
  } catch (const Error&) {
    trim_error_ = std::current_exception();
  }
}

// Evicts the first of `victims`, with one write for what is dirty in all of them if that one needs it.
void Store::EvictFirst(const std::vector<uint32_t>& victims, Lock& lock) {
  snapshot_->Hurry(victims[0]);
  write_back_->WaitUntil(lock.data, [&] { return !cache_.Pinned(victims[0]) && !cache_.InSnapshot(victims[0]); });
  std::vector<Slot> dirty;
  cache_.CollectDirty(victims[0], true, &dirty);
  if (!dirty.empty()) {
    AwaitNoSnapshot(lock);
    write_back_->WriteEvictable(victims, lock.data);
  }
  cache_.Evict(victims[0]);
}

// A snapshot ends when its checkpoint is complete.
void Store::AwaitNoSnapshot(Lock& lock) {
  progress_.wait(lock.data, [&] { return !snapshot_->active(); });
}

}  // namespace damo
