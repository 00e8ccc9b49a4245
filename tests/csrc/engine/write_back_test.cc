#include "engine/write_back.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::FailOnce;
using testing::Gate;

constexpr size_t kSegment = 4096;

// A payload that no other row has, of a row that was never updated: no reason for the cache to keep it.
std::string Payload(size_t size, uint32_t table, int64_t id, uint64_t version) {
  std::string payload = testing::Payload(size, table, id, version);
  std::memset(payload.data() + size - 2 * sizeof(uint32_t), 0, 2 * sizeof(uint32_t));
  return payload;
}

// Notes every write, after checking that it is one that RowStore allows.
class WriteLog : public testing::HookedStore {
 public:
  explicit WriteLog(Hook before_write) : HookedStore([] {}, std::move(before_write)) {}

  void Write(std::span<const RowWrite> rows) override {
    for (size_t i = 1; i < rows.size(); ++i) {
      EXPECT_LT(std::pair(rows[i - 1].table, rows[i - 1].id), std::pair(rows[i].table, rows[i].id));
    }
    HookedStore::Write(rows);
    rows_written_ += rows.size();
    ++writes_;
  }

  size_t rows_written() const { return rows_written_; }
  size_t writes() const { return writes_; }

 private:
  std::atomic<size_t> rows_written_ = 0;
  std::atomic<size_t> writes_ = 0;
};

// Two tables, of which the first by index has the greater number.
class WriteBackTest : public ::testing::Test {
 protected:
  WriteBackTest() {
    for (const auto& [number, dim] : {std::pair{9u, 16}, {4u, 3}}) {
      TableSchema schema;
      schema.number = number;
      schema.dim = dim;
      tables_.emplace_back(schema);
      cache_.AddTable(tables_.back().layout);
    }
  }

  // A dirty row that no operation has used again.
  Slot Add(uint16_t table, int64_t id, uint64_t version = 0) {
    const uint32_t tag = HashTag(table, id);
    const Slot slot = cache_.Add(table, id, tag, /*awaited=*/false);
    SetRowFlags(cache_.Row(slot), 0);
    Change(slot, version);
    return slot;
  }
  void Change(Slot slot, uint64_t version) {
    const Table& table = tables_[RowTable(cache_.Row(slot))];
    const std::string payload =
        Payload(table.layout.payload_size(), table.schema.number, RowId(cache_.Row(slot)), version);
    std::memcpy(cache_.Row(slot) + kPayloadOffset, payload.data(), payload.size());
    cache_.MarkDirty(slot);
  }
  bool IsDirty(Slot slot) const { return RowFlags(cache_.Row(slot)) & kDirty; }

  void ExpectStored(uint16_t table, const std::set<int64_t>& ids, uint64_t version = 0) {
    const TableSchema& schema = tables_[table].schema;
    const size_t size = tables_[table].layout.payload_size();
    testing::Table expected;
    for (const int64_t id : ids) expected[id] = Payload(size, schema.number, id, version);
    EXPECT_EQ(testing::ScanAll(&rows_, schema.number, size), expected);
  }

  std::function<void()> before_write_ = [] {};
  WriteLog rows_{[this] { before_write_(); }};
  DiskBudget disk_{0, "", &rows_};
  Journal journal_{&rows_, &disk_};
  CachedTables cached_{{4000 * kSegment, kSegment, 0}};
  RowCache& cache_ = cached_.cache;
  Tables& tables_ = cached_.tables;
};

TEST_F(WriteBackTest, WritesEveryDirtyRowOnceAndInOrder) {
  WriteBack write_back(&rows_, &journal_, &cached_);
  const MutexLock lock(cached_.mutex());
  std::mt19937_64 random(1);
  std::set<int64_t> ids[2] = {{std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()}, {}};
  for (int i = 0; i < 3000; ++i) ids[i % 2].insert(static_cast<int64_t>(random()));
  std::vector<Slot> slots;
  for (uint16_t table = 0; table < 2; ++table) {
    for (const int64_t id : ids[table]) slots.push_back(Add(table, id));
  }
  write_back.WriteAll();
  for (uint16_t table = 0; table < 2; ++table) ExpectStored(table, ids[table]);
  EXPECT_EQ(rows_.rows_written(), slots.size());
  EXPECT_TRUE(std::none_of(slots.begin(), slots.end(), [&](Slot slot) { return IsDirty(slot); }));
  write_back.WriteAll();
  EXPECT_EQ(rows_.rows_written(), slots.size()) << "clean rows were written again";
}

TEST_F(WriteBackTest, WritesEverythingPartByPartAndThenNothingMore) {
  WriteBack write_back(&rows_, &journal_, &cached_);
  const MutexLock lock(cached_.mutex());
  std::set<int64_t> ids;
  for (int64_t id = 0; id < 3000; ++id) {
    ids.insert(id);
    Add(0, id);
  }
  const size_t segments = cache_.SegmentsInUse().size();
  size_t done = 0, parts = 0;
  while (done < segments) {
    const auto [now, total] = write_back.WritePart(done);
    EXPECT_EQ(total, segments);
    ASSERT_GT(now, done);
    done = now;
    ++parts;
  }
  EXPECT_GT(parts, 2u);
  ExpectStored(0, ids);
  EXPECT_EQ(write_back.WritePart(done), std::pair(done, segments));
  write_back.WriteAll();
  EXPECT_EQ(rows_.rows_written(), ids.size());
}

TEST_F(WriteBackTest, LeavesRowsThatEvictionKeeps) {
  WriteBack write_back(&rows_, &journal_, &cached_);
  const MutexLock lock(cached_.mutex());
  const Slot used = Add(0, 1), unused = Add(0, 2);
  cache_.BeginOperation();
  cache_.Touch(used);
  write_back.WriteEvictable(cache_.SegmentsInUse());
  EXPECT_TRUE(IsDirty(used));
  EXPECT_FALSE(IsDirty(unused));
  ExpectStored(0, {2});
  write_back.WriteAll();
  EXPECT_FALSE(IsDirty(used));
  ExpectStored(0, {1, 2});
}

TEST_F(WriteBackTest, WhatAFailedWriteLeftIsWrittenNextTime) {
  FailOnce failure;
  before_write_ = [&] { failure(); };
  WriteBack write_back(&rows_, &journal_, &cached_);
  const MutexLock lock(cached_.mutex());
  std::set<int64_t> ids;
  std::vector<Slot> slots;
  for (int64_t id = 0; id < 60000; ++id) {  // several writes
    ids.insert(id);
    slots.push_back(Add(0, id));
  }
  failure.Arm(2);
  ExpectError(ErrorCode::kIo, {"on fire"}, [&] { write_back.WriteAll(); });
  const auto dirty = std::count_if(slots.begin(), slots.end(), [&](Slot slot) { return IsDirty(slot); });
  EXPECT_EQ(static_cast<size_t>(dirty), slots.size() - rows_.rows_written());
  EXPECT_GT(dirty, 0);
  write_back.WriteAll();
  EXPECT_EQ(rows_.rows_written(), slots.size());
  ExpectStored(0, ids);
}

TEST_F(WriteBackTest, CleansWhatWillBeEvictedInTheBackground) {
  WriteBack write_back(&rows_, &journal_, &cached_);
  const MutexLock lock(cached_.mutex());
  for (int64_t id = 0; id < 500; ++id) Add(0, id);
  const std::vector<uint32_t> victims = cache_.NextVictims(4);
  ASSERT_EQ(victims.size(), 4u);
  write_back.Wake();
  // Written without any further call: the thread needs the mutex, and nothing else.
  while (rows_.writes() == 0) {
    const MutexUnlock unlocked(cached_.mutex());
    std::this_thread::yield();
  }
  write_back.WaitIdle();
  std::vector<Slot> dirty;
  cache_.CollectDirty(victims[0], true, &dirty);
  EXPECT_TRUE(dirty.empty());
  write_back.WriteAll();
  EXPECT_EQ(rows_.rows_written(), 500u) << "rows were written twice";
}

TEST_F(WriteBackTest, RowsThatChangeWhileTheyAreWrittenStayDirty) {
  Gate gate;
  before_write_ = [&] { gate(); };
  WriteBack write_back(&rows_, &journal_, &cached_);
  std::vector<Slot> slots;
  std::set<int64_t> ids;
  const MutexLock lock(cached_.mutex());
  for (int64_t id = 0; id < 500; ++id) {
    slots.push_back(Add(0, id));
    ids.insert(id);
  }
  write_back.Wake();
  {
    const MutexUnlock unlocked(cached_.mutex());
    gate.AwaitArrival();
  }
  EXPECT_TRUE(cache_.Pinned(cache_.SegmentOf(slots[0]))) << "a segment that is being written may not go";
  for (const Slot slot : slots) Change(slot, 1);
  gate.Open();
  write_back.WaitIdle();
  EXPECT_FALSE(cache_.Pinned(cache_.SegmentOf(slots[0])));
  EXPECT_TRUE(std::all_of(slots.begin(), slots.end(), [&](Slot slot) { return IsDirty(slot); }));
  write_back.WriteAll();
  ExpectStored(0, ids, 1);
}

TEST_F(WriteBackTest, AFailureInTheBackgroundLosesNothing) {
  Gate gate;
  FailOnce failure;
  before_write_ = [&] {
    gate();
    failure();
  };
  failure.Arm(1);
  WriteBack write_back(&rows_, &journal_, &cached_);
  std::set<int64_t> ids;
  const MutexLock lock(cached_.mutex());
  for (int64_t id = 0; id < 500; ++id) {
    Add(0, id);
    ids.insert(id);
  }
  write_back.Wake();
  {
    const MutexUnlock unlocked(cached_.mutex());
    gate.AwaitArrival();
  }
  // Rows that are erased in the meantime do not come back.
  cache_.Erase(HashTag(0, 0), cache_.Find(HashTag(0, 0), 0, 0));
  ids.erase(0);
  gate.Open();
  write_back.WaitIdle();
  EXPECT_TRUE(failure.Fired());
  write_back.WriteAll();
  ExpectStored(0, ids);
}

TEST_F(WriteBackTest, StopsWithoutWriting) {
  {
    WriteBack write_back(&rows_, &journal_, &cached_);
    const MutexLock lock(cached_.mutex());
    for (int64_t id = 0; id < 500; ++id) Add(0, id);
  }
  EXPECT_EQ(rows_.writes(), 0u);
}

}  // namespace
}  // namespace damo
