#include "engine/prefetch.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace damo {
namespace {

// What share of the cache rows may take that were prefetched and not used yet: one of so many parts.
constexpr size_t kAwaitedShare = 4;

}  // namespace

void Prefetcher::Prefetch(Lookup* lookup) {
  if (lookup->num_slots == 0) return;
  lookup->epoch = 0;
  if (finder_->KeepsSlots(*lookup)) {
    lookup->slots.resize(lookup->num_slots);
    return PrefetchAtOnce(lookup);
  }
  // The rows of one window fill what prefetches may take.
  finder_->InWindows(*lookup, 0, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
    PrefetchAtOnce(window.lookup);
    return false;
  });
}

void Prefetcher::PrefetchAtOnce(Lookup* lookup) {
  const size_t awaited = awaited_->bytes(), most = cache_.row_capacity_bytes() / kAwaitedShare;
  size_t room = most - std::min(most, awaited);
  // Room is made before rows are looked up: no row of this batch that is there should make way for those that are not.
  room_->MakeSpareRoom(std::min(forecast_.expected(), room));
  std::vector<Unit> units = MakeUnits(lookup);
  finder_->Peek(units);
  std::vector<LoadRun> runs = loader_->Missing(units);
  for (LoadRun& run : runs) {
    run.ids.resize(std::min(run.ids.size(), room / cache_.stride(run.index)));
    room -= run.ids.size() * cache_.stride(run.index);
  }
  size_t bytes = loader_->BytesOf(runs);
  forecast_.Note(bytes);
  room_->MakeSpareRoom(bytes);
  if (cache_.NeedsEviction(bytes)) bytes = 0;
  awaited_->Add(*lookup, bytes, cache_.arrival());
  if (bytes == 0) return;
  try {
    loader_->LoadInBackground(std::move(runs));
  } catch (...) {
    awaited_->RemoveLast();
    throw;
  }
}

}  // namespace damo
