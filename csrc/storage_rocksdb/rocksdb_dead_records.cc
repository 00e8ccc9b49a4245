#include "storage_rocksdb/rocksdb_dead_records.h"

#include <rocksdb/status.h>
#include <rocksdb/table_properties.h>

#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "row/key.h"
#include "row/record.h"
#include "row/row.h"

namespace damo {
namespace {

constexpr char kProperty[] = "damo.sample";

// An entry of the property's value, in the machine's byte order.
struct Sampled {
  int64_t id;
  uint64_t step;
  RowHeader header;
  uint32_t table;
  uint32_t bytes;  // of key and value
  RecordLife::Kind kind;
  char padding[7];

  RecordLife life() const { return {kind, table, id, header, step}; }
};
static_assert(sizeof(Sampled) == 40);

// About half as many, to so many, entries of a file are in its sample.
constexpr size_t kMostSampled = 128;

// Of which the sample has those where some of the lowest bits are 0: as many in each part of a file, and in no rhythm
// that ids may have.
uint64_t HashOf(const rocksdb::Slice& key) {
  uint64_t hash = static_cast<uint64_t>(DecodeId(key.ToStringView())) + DecodeTable(key.ToStringView());
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdu;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53u;
  return hash ^ (hash >> 33);
}

class SampleCollector : public rocksdb::TablePropertiesCollector {
 public:
  rocksdb::Status AddUserKey(const rocksdb::Slice& key, const rocksdb::Slice& value, rocksdb::EntryType type,
                             rocksdb::SequenceNumber, uint64_t) override {
    if (key.size() != kKeySize) return rocksdb::Status::OK();
    const uint64_t hash = HashOf(key);
    while ((hash & mask_) == 0 && sample_.size() == kMostSampled && mask_ != kAll) {
      mask_ = 2 * mask_ + 1;
      std::erase_if(sample_, [&](const auto& entry) { return (entry.first & mask_) != 0; });
    }
    if ((hash & mask_) != 0) return rocksdb::Status::OK();
    const RecordLife life = type == rocksdb::kEntryPut ? RecordLife::Of(key, value) : RecordLife();
    const auto bytes = static_cast<uint32_t>(key.size() + value.size());
    sample_.push_back({hash, {life.id, life.step, life.header, life.table, bytes, life.kind, {}}});
    return rocksdb::Status::OK();
  }

  rocksdb::Status Finish(rocksdb::UserCollectedProperties* properties) override {
    std::string value;
    for (const auto& [hash, entry] : sample_) value.append(reinterpret_cast<const char*>(&entry), sizeof entry);
    (*properties)[kProperty] = std::move(value);
    return rocksdb::Status::OK();
  }

  rocksdb::UserCollectedProperties GetReadableProperties() const override { return {}; }
  const char* Name() const override { return "damo.SampleCollector"; }

 private:
  static constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();  // then all of it are versions of one key
  uint64_t mask_ = 0;
  std::vector<std::pair<uint64_t, Sampled>> sample_;  // with their hashes
};

class Factory : public rocksdb::TablePropertiesCollectorFactory {
 public:
  rocksdb::TablePropertiesCollector* CreateTablePropertiesCollector(Context) override { return new SampleCollector; }
  const char* Name() const override { return "damo.SampleCollectorFactory"; }
};

}  // namespace

RecordLife RecordLife::Of(const rocksdb::Slice& key, const rocksdb::Slice& value) {
  RecordLife life;
  if (key.size() != kKeySize || value.empty()) return life;
  const uint32_t table = DecodeTable(key.ToStringView());
  life.table = table & ~kDeletionBit;
  life.id = DecodeId(key.ToStringView());
  if (table & kDeletionBit) {
    if (value[0] != kRecordVersion || value.size() != sizeof(DeletionRecord)) return life;
    life.kind = Kind::kDeletion;
    life.step = DecodeDeletion(value.data() + 1);
  } else if (value[0] == kRecordVersion && value.size() > sizeof(RowHeader)) {
    life.kind = Kind::kRow;
    life.header = PayloadHeader(value.data(), value.size());
  } else if (value[0] == kSightingVersion && value.size() == 1 + sizeof(RowHeader)) {
    life.kind = Kind::kSighting;
    life.header = PayloadHeader(value.data(), value.size());
  }
  return life;
}

bool RecordLife::IsDead(const Reclaimable& reclaimable) const {
  switch (kind) {
    case Kind::kRow:
      return reclaimable.ladder.IsDead(header, id);
    case Kind::kSighting:
      return reclaimable.ladder.IsDeadSighting(header);
    case Kind::kDeletion:
      return step < reclaimable.deletions_before;
    case Kind::kOther:
      break;
  }
  return false;
}

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> SampleCollectorFactory() {
  return std::make_shared<Factory>();
}

std::optional<double> DeadShare(const rocksdb::TableProperties& properties, const ReclaimableTables& reclaimable) {
  const auto found = properties.user_collected_properties.find(kProperty);
  if (found == properties.user_collected_properties.end()) return std::nullopt;
  const std::string& value = found->second;
  if (value.empty() || value.size() % sizeof(Sampled) != 0) return std::nullopt;
  double all = 0, dead = 0;
  for (size_t at = 0; at < value.size(); at += sizeof(Sampled)) {
    Sampled sampled;
    std::memcpy(&sampled, value.data() + at, sizeof sampled);
    all += sampled.bytes;
    const auto of_table = reclaimable.find(sampled.table);
    if (of_table != reclaimable.end() && sampled.life().IsDead(of_table->second)) dead += sampled.bytes;
  }
  return all > 0 ? dead / all : 0;
}

}  // namespace damo
