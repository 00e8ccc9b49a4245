#include "engine/making_room.h"

#include <exception>
#include <string>
#include <utility>

namespace damo {

void RoomMaker::MakeRoom(size_t bytes) {
  // Each round frees memory, or takes a use from every row it keeps and raises the bar for frequent ones.
  const size_t all = cache_.SegmentsInUse().size() + 2;
  size_t rounds = 6 * all;
  while (cache_.NeedsEviction(bytes)) {
    // Once around in vain: the call under way comes before those that rows were prefetched for.
    if (rounds == 5 * all) awaited_->ForgetAll();
    const std::vector<uint32_t> victims = cache_.NextVictims(8);
    if (victims.empty() || rounds-- == 0) Refuse(bytes);
    EvictFirst(victims);
  }
}

void RoomMaker::Refuse(size_t bytes) const {
  const size_t mebibytes = ((memory_budget_ + bytes + bytes / 2) >> 20) + 1;
  throw NoRoom(ErrorCode::kInvalidArgument,
               "a batch needs more rows in memory at once than memory_budget (" + std::to_string(memory_budget_) +
                   " bytes, of which " + std::to_string(cache_.row_capacity_bytes()) +
                   " hold rows) allows: it should be at least \"" + std::to_string(mebibytes) + "MiB\"");
}

void RoomMaker::MakeRoomAround(std::span<const Unit> units, size_t bytes) {
  if (!cache_.NeedsEviction(bytes)) return;
  const auto for_each_found = [&](auto f) DAMO_REQUIRES(store_mutex) {
    for (const Unit& unit : units) {
      for (size_t i = 0; i < unit.num_ids(); ++i) {
        Slot& slot = unit.slots()[i];
        if (slot != kMissingSlot) f(unit.feature->table, unit.ids()[i], slot);
      }
    }
  };
  const auto unpin = [&](uint16_t table, int64_t id, Slot& slot) DAMO_REQUIRES(store_mutex) {
    slot = cache_.Find(HashTag(table, id), table, id);
    if (slot != kMissingSlot) cache_.UnpinRow(slot);  // else a prefetch has failed to bring it
  };
  for_each_found([&](uint16_t, int64_t, Slot& slot) DAMO_REQUIRES(store_mutex) { cache_.PinRow(slot); });
  try {
    MakeRoom(bytes);
  } catch (...) {
    for_each_found(unpin);
    throw;
  }
  for_each_found(unpin);
}

void RoomMaker::MakeSpareRoom(size_t bytes) {
  // Twice around: what is used often survives the first time.
  for (size_t rounds = 2 * cache_.SegmentsInUse().size(); rounds > 0; --rounds) {
    if (!cache_.NeedsEviction(bytes) || cache_.spare_segments() == 0) return;
    EvictFirst(cache_.NextVictims(8));
  }
}

void RoomMaker::Trim() {
  if (cache_.resident_limit() == 0) return;
  try {
    while (cache_.resident_bytes() > cache_.resident_limit() + awaited_->bytes()) {
      cache_.Seal();
      const std::vector<uint32_t> victims = cache_.NextVictims(1);
      if (victims.empty()) return;
      EvictFirst(victims);
    }
  } catch (...) {
    trim_error_ = std::current_exception();
  }
}

void RoomMaker::RaiseTrimError() {
  if (trim_error_) std::rethrow_exception(std::exchange(trim_error_, nullptr));
}

// Evicts the first of `victims`, with one write for what is dirty in all of them if that one needs it.
void RoomMaker::EvictFirst(const std::vector<uint32_t>& victims) {
  capture_->Hurry(victims[0]);
  write_back_->WaitUntil(
      [&]() DAMO_REQUIRES(store_mutex) { return !cache_.Pinned(victims[0]) && !cache_.InCapture(victims[0]); });
  std::vector<Slot> dirty;
  cache_.CollectDirty(victims[0], true, &dirty);
  if (!dirty.empty()) {
    capture_->AwaitEnd();
    write_back_->WriteEvictable(victims);
  }
  cache_.Evict(victims[0]);
}

}  // namespace damo
