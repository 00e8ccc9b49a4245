#include "storage_rocksdb/rocksdb_dead_records.h"

#include <gtest/gtest.h>
#include <rocksdb/compaction_filter.h>
#include <rocksdb/table_properties.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_compaction_filter.h"
#include "storage_rocksdb/rocksdb_reclaimable.h"

namespace damo {
namespace {

using Kind = RecordLife::Kind;

constexpr uint32_t kTable = 3;
const Key kKey = EncodeKey(kTable, -7);
const Key kDeletionKey = EncodeDeletionKey(kTable, -7);

std::string WithHeader(std::string value, RowHeader header) {
  return value.append(reinterpret_cast<const char*>(&header), sizeof header);
}
std::string Row(RowHeader header) { return WithHeader("\x01weights.", header); }
std::string Sightings(RowHeader header) { return WithHeader("\x02", header); }
std::string OfVersion(char version, std::string value) {
  value[0] = version;
  return value;
}
std::string Deletion(uint64_t step) {
  const DeletionRecord record = EncodeDeletion(step);
  return {record.data(), record.size()};
}

TEST(RecordLife, IsOfWhatThisReleaseKnows) {
  const RecordLife row = RecordLife::Of(kKey.view(), Row({5, 2}));
  EXPECT_EQ(row.kind, Kind::kRow);
  EXPECT_EQ(row.table, kTable);
  EXPECT_EQ(row.id, -7);
  EXPECT_EQ(row.header.last_step, 5u);
  EXPECT_EQ(row.header.count, 2u);
  EXPECT_EQ(RecordLife::Of(kKey.view(), Sightings({5, 2})).kind, Kind::kSighting);
  const RecordLife deletion = RecordLife::Of(kDeletionKey.view(), Deletion(9));
  EXPECT_EQ(deletion.kind, Kind::kDeletion);
  EXPECT_EQ(deletion.table, kTable);
  EXPECT_EQ(deletion.step, 9u);
}

TEST(RecordLife, IsOfNothingElse) {
  const std::string row = Row({5, 2}), deletion = Deletion(9);
  for (const std::string_view value : {std::string_view(), std::string_view("\x01"), std::string_view("\x01short"),
                                       std::string_view("\x02sightings."), std::string_view("\x03weights.........")}) {
    EXPECT_EQ(RecordLife::Of(kKey.view(), value).kind, Kind::kOther) << value;
  }
  EXPECT_EQ(RecordLife::Of("key", row).kind, Kind::kOther);
  EXPECT_EQ(RecordLife::Of(kDeletionKey.view(), row).kind, Kind::kOther);
  EXPECT_EQ(RecordLife::Of(kDeletionKey.view(), OfVersion(2, deletion)).kind, Kind::kOther);
}

TEST(RecordLife, IsDeadByItsOwnRule) {
  Reclaimable reclaimable;
  reclaimable.ladder.Raise(CountClass(2), PositionOf(6));
  reclaimable.ladder.Raise(kSightingClass, PositionOf(8));
  reclaimable.deletions_before = 9;
  const auto is_dead = [&](const Key& key, const std::string& value) {
    return RecordLife::Of(key.view(), value).IsDead(reclaimable);
  };
  EXPECT_TRUE(is_dead(kKey, Row({5, 2})));
  EXPECT_TRUE(is_dead(kKey, Row({5, 3})));
  EXPECT_FALSE(is_dead(kKey, Row({6, 2})));
  EXPECT_FALSE(is_dead(kKey, Row({0, 1})));
  EXPECT_FALSE(is_dead(kKey, Row({0, 4})));
  EXPECT_TRUE(is_dead(kKey, Sightings({7, 1000})));
  EXPECT_FALSE(is_dead(kKey, Sightings({8, 2})));
  EXPECT_TRUE(is_dead(kDeletionKey, Deletion(8)));
  EXPECT_FALSE(is_dead(kDeletionKey, Deletion(9)));
  EXPECT_FALSE(is_dead(kKey, OfVersion(3, Row({5, 2}))));
}

TEST(ReclaimableRecords, OnlyGrowAndWaitForTheOldestHold) {
  const auto records = std::make_shared<ReclaimableRecords>();
  const auto step = [&] { return StepOf(records->Removable()[kTable].ladder.position(1)); };
  Reclaimable more;
  more.ladder.Raise(1, PositionOf(10));
  records->Add(kTable, more);
  records->Add(kTable, {{}, 7});
  EXPECT_EQ(step(), 10u);
  EXPECT_EQ(records->Removable()[kTable].deletions_before, 7u);

  std::shared_ptr<const void> oldest = records->Hold();
  more.ladder.Raise(1, PositionOf(20));
  records->Add(kTable, more);
  std::shared_ptr<const void> younger = records->Hold();
  more.ladder.Raise(1, PositionOf(30));
  records->Add(kTable, more);
  EXPECT_EQ(step(), 10u);
  oldest.reset();
  EXPECT_EQ(step(), 20u);
  EXPECT_TRUE(records->held());
  younger.reset();
  EXPECT_EQ(step(), 30u);
  EXPECT_FALSE(records->held());
}

// As RocksDB calls it, in any version of a key.
TEST(ReclaimingFilter, RemovesWhatIsDeadAndCountsIt) {
  const auto records = std::make_shared<ReclaimableRecords>();
  const auto counts = std::make_shared<ReclaimedCounts>();
  const auto factory = ReclaimingFilterFactory(records, counts);
  EXPECT_EQ(factory->CreateCompactionFilter({}), nullptr);
  Reclaimable reclaimable;
  reclaimable.ladder.Raise(1, PositionOf(10));
  records->Add(kTable, reclaimable);
  {
    const auto filter = factory->CreateCompactionFilter({});
    EXPECT_TRUE(filter->IgnoreSnapshots());
    using Filter = rocksdb::CompactionFilter;
    const auto decide = [&](const Key& key, const std::string& value, Filter::ValueType type) {
      std::string changed, until;
      return filter->FilterV2(6, key.view(), type, value, &changed, &until);
    };
    EXPECT_EQ(decide(kKey, Row({9, 1}), Filter::ValueType::kValue), Filter::Decision::kRemove);
    EXPECT_EQ(decide(kKey, Row({10, 1}), Filter::ValueType::kValue), Filter::Decision::kKeep);
    EXPECT_EQ(decide(kKey, Row({9, 1}), Filter::ValueType::kMergeOperand), Filter::Decision::kKeep);
    EXPECT_EQ(decide(EncodeKey(kTable + 1, -7), Row({9, 1}), Filter::ValueType::kValue), Filter::Decision::kKeep);
  }
  EXPECT_EQ(counts->records, 1u);
  EXPECT_EQ(counts->bytes, kKeySize + Row({}).size());
}

class SampleTest : public ::testing::Test {
 protected:
  void Add(uint32_t table, const std::string& value, rocksdb::EntryType type = rocksdb::kEntryPut) {
    AddTo(EncodeKey(table, next_++), value, type);
  }
  void AddTo(const Key& key, const std::string& value, rocksdb::EntryType type = rocksdb::kEntryPut) {
    ASSERT_TRUE(collector_->AddUserKey(key.view(), value, type, 0, 0).ok());
  }
  rocksdb::TableProperties Finish() {
    rocksdb::TableProperties properties;
    EXPECT_TRUE(collector_->Finish(&properties.user_collected_properties).ok());
    return properties;
  }

 private:
  const std::unique_ptr<rocksdb::TablePropertiesCollector> collector_{
      SampleCollectorFactory()->CreateTablePropertiesCollector({})};
  int64_t next_ = 0;
};

ReclaimableTables Below(uint32_t step) {
  Reclaimable reclaimable;
  for (size_t c = 0; c < kLadderClasses; ++c) reclaimable.ladder.Raise(c, PositionOf(step));
  return {{kTable, reclaimable}};
}

TEST_F(SampleTest, SaysWhichShareOfTheBytesIsDead) {
  for (uint32_t i = 0; i < 100000; ++i) Add(kTable, Row({i * 7919 % 1000, 1}));
  const rocksdb::TableProperties properties = Finish();
  EXPECT_EQ(DeadShare(properties, Below(0)), 0);
  EXPECT_NEAR(DeadShare(properties, Below(300)).value(), 0.3, 0.1);
  EXPECT_NEAR(DeadShare(properties, Below(800)).value(), 0.8, 0.1);
  EXPECT_EQ(DeadShare(properties, Below(1000)), 1);
  EXPECT_EQ(DeadShare(properties, {}), 0);
  EXPECT_LT(properties.user_collected_properties.begin()->second.size(), 8192u);
}

// As where many snapshots are open.
TEST_F(SampleTest, HoldsVersionsOfOneKeyHoweverMany) {
  for (uint32_t step = 0; step < 1000; ++step) AddTo(EncodeKey(kTable, -static_cast<int64_t>(kTable)), Row({step, 1}));
  EXPECT_GE(DeadShare(Finish(), Below(1000)).value(), 0.9);
}

TEST_F(SampleTest, IsExactForFewEntriesOfAnyKind) {
  Add(kTable, Row({1, 1}));                        // dead
  Add(kTable, Row({9, 1}));                        // alive
  Add(kTable, Sightings({1, 1}));                  // dead
  Add(kTable | kDeletionBit, Deletion(1));         // kept
  Add(kTable, "", rocksdb::kEntryDelete);          // a tombstone
  Add(kTable + 1, Row({1, 1}));                    // of another table
  Add(kTable, Row({1, 1}), rocksdb::kEntryMerge);  // of nobody
  const double row = kKeySize + Row({}).size(), sightings = kKeySize + Sightings({}).size(), tombstone = kKeySize;
  const double all = 4 * row + sightings + kKeySize + sizeof(DeletionRecord) + tombstone;
  EXPECT_DOUBLE_EQ(DeadShare(Finish(), Below(5)).value(), (row + sightings) / all);
}

TEST_F(SampleTest, OfAnotherReleaseIsNotBelieved) {
  Add(kTable, Row({1, 1}));
  rocksdb::TableProperties properties = Finish();
  std::string& value = properties.user_collected_properties.begin()->second;
  value.pop_back();
  EXPECT_EQ(DeadShare(properties, Below(5)), std::nullopt);
  value.clear();
  EXPECT_EQ(DeadShare(properties, Below(5)), std::nullopt);
  properties.user_collected_properties.clear();
  EXPECT_EQ(DeadShare(properties, Below(5)), std::nullopt);
}

}  // namespace
}  // namespace damo
