#include "storage_rocksdb/rocksdb_changes.h"

#include <rocksdb/slice.h>
#include <rocksdb/status.h>
#include <rocksdb/table_properties.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>

#include "row/key.h"
#include "row/record.h"

namespace damo {
namespace {

// What the property maps tables to where a file holds a tombstone, or an entry that is none of ours.
constexpr uint64_t kAlwaysRead = std::numeric_limits<uint64_t>::max();
// Its value: for each table its number, u32, and the largest step, u64, in the machine's byte order.
constexpr char kProperty[] = "damo.largest_steps";
constexpr size_t kEntryBytes = sizeof(uint32_t) + sizeof(uint64_t);

class StepsCollector : public rocksdb::TablePropertiesCollector {
 public:
  rocksdb::Status AddUserKey(const rocksdb::Slice& key, const rocksdb::Slice& value, rocksdb::EntryType type,
                             rocksdb::SequenceNumber, uint64_t) override {
    if (key.size() != kKeySize) return rocksdb::Status::OK();
    const uint32_t table = DecodeTable(key.ToStringView());
    if (last_ == steps_.end() || last_->first != table) last_ = steps_.try_emplace(table, 0).first;
    std::optional<uint64_t> step;
    if (type == rocksdb::kEntryPut) step = RecordStep(table, value.ToStringView());
    last_->second = std::max(last_->second, step.value_or(kAlwaysRead));
    return rocksdb::Status::OK();
  }

  rocksdb::Status Finish(rocksdb::UserCollectedProperties* properties) override {
    std::string value;
    for (const auto& [table, step] : steps_) {
      value.append(reinterpret_cast<const char*>(&table), sizeof table);
      value.append(reinterpret_cast<const char*>(&step), sizeof step);
    }
    (*properties)[kProperty] = std::move(value);
    return rocksdb::Status::OK();
  }

  rocksdb::UserCollectedProperties GetReadableProperties() const override { return {}; }
  const char* Name() const override { return "damo.StepsCollector"; }

 private:
  std::map<uint32_t, uint64_t> steps_;
  std::map<uint32_t, uint64_t>::iterator last_ = steps_.end();
};

class Factory : public rocksdb::TablePropertiesCollectorFactory {
 public:
  rocksdb::TablePropertiesCollector* CreateTablePropertiesCollector(Context) override { return new StepsCollector; }
  const char* Name() const override { return "damo.StepsCollectorFactory"; }
};

}  // namespace

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> StepsCollectorFactory() {
  return std::make_shared<Factory>();
}

TableFilter ChangedSince(uint32_t table, uint64_t since) {
  return [table, since](const rocksdb::TableProperties& properties) {
    const auto found = properties.user_collected_properties.find(kProperty);
    // A file that an earlier release wrote.
    if (found == properties.user_collected_properties.end() || found->second.size() % kEntryBytes != 0) return true;
    const std::string& value = found->second;
    for (size_t at = 0; at < value.size(); at += kEntryBytes) {
      uint32_t number;
      uint64_t step;
      std::memcpy(&number, value.data() + at, sizeof number);
      std::memcpy(&step, value.data() + at + sizeof number, sizeof step);
      if (number == table) return step >= since;
    }
    return false;
  };
}

}  // namespace damo
