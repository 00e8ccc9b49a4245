#include "storage_rocksdb/rocksdb_changes.h"

#include <gtest/gtest.h>
#include <rocksdb/table_properties.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "row/key.h"
#include "row/record.h"
#include "row/row.h"

namespace damo {
namespace {

// A table file's properties, collected from entries.
class PropertiesTest : public ::testing::Test {
 protected:
  void Add(uint32_t table, std::string_view value, rocksdb::EntryType type = rocksdb::kEntryPut) {
    const Key key = EncodeKey(table, next_++);
    ASSERT_TRUE(collector_->AddUserKey(key.view(), value, type, 0, 0).ok());
  }
  void AddRow(uint32_t table, uint32_t step) {
    const RowHeader header = {step, 3};
    Add(table, "\x01weights." + std::string(reinterpret_cast<const char*>(&header), sizeof header));
  }
  void AddDeletion(uint32_t table, uint64_t step) {
    const DeletionRecord record = EncodeDeletion(step);
    Add(table | kDeletionBit, {record.data(), record.size()});
  }
  rocksdb::TableProperties Finish() {
    rocksdb::TableProperties properties;
    EXPECT_TRUE(collector_->Finish(&properties.user_collected_properties).ok());
    return properties;
  }
  // The least step since which nothing in the file counts as changed.
  static uint64_t Least(const rocksdb::TableProperties& properties, uint32_t table) {
    uint64_t since = 0;
    while (since < 100 && ChangedSince(table, since)(properties)) ++since;
    return since;
  }

  static constexpr uint64_t kAlways = 100;

 private:
  const std::unique_ptr<rocksdb::TablePropertiesCollector> collector_{
      StepsCollectorFactory()->CreateTablePropertiesCollector({})};
  int64_t next_ = 0;
};

TEST_F(PropertiesTest, HaveTheLargestStepOfEachTable) {
  AddRow(1, 7);
  AddRow(1, 5);
  AddRow(3, 0);
  AddRow(1, 9);
  AddDeletion(1, 20);
  AddDeletion(1, 11);
  const rocksdb::TableProperties properties = Finish();
  EXPECT_EQ(Least(properties, 1), 10u);
  EXPECT_EQ(Least(properties, 1 | kDeletionBit), 21u);
  EXPECT_EQ(Least(properties, 3), 1u);
  EXPECT_EQ(Least(properties, 2), 0u);
  EXPECT_EQ(Least(properties, 3 | kDeletionBit), 0u);
}

TEST_F(PropertiesTest, WithATombstoneOrAnUnknownEntryCountAsNew) {
  AddRow(1, 7);
  Add(1, "", rocksdb::kEntryDelete);
  Add(2, "short");
  Add(3, "\x01weights and more", rocksdb::kEntryMerge);
  Add(4 | kDeletionBit, "\x01weights and more");
  AddRow(5, 7);
  const rocksdb::TableProperties properties = Finish();
  for (const uint32_t table : {1u, 2u, 3u, 4 | kDeletionBit}) EXPECT_EQ(Least(properties, table), kAlways) << table;
  EXPECT_EQ(Least(properties, 5), 8u);
}

TEST_F(PropertiesTest, OfAnEarlierReleaseCountAsNew) {
  AddRow(1, 7);
  rocksdb::TableProperties properties = Finish();
  std::string& value = properties.user_collected_properties.begin()->second;
  EXPECT_EQ(Least(properties, 1), 8u);
  value.pop_back();
  EXPECT_EQ(Least(properties, 1), kAlways);
  properties.user_collected_properties.clear();
  EXPECT_EQ(Least(properties, 1), kAlways);
}

}  // namespace
}  // namespace damo
