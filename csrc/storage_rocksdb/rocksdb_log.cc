#include "storage_rocksdb/rocksdb_log.h"

#include <array>

#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_log_format.h"

namespace damo {

using namespace rocksdb_log;

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

void AppendVarint(uint32_t value, std::string* to) {
  for (; value >= 128; value >>= 7) to->push_back(static_cast<char>(value | 128));
  to->push_back(static_cast<char>(value));
}

void AppendKey(const Key& key, std::string* to) {
  AppendVarint(kKeySize, to);
  to->append(key.view());
}

void AppendPut(const Key& key, std::string_view value_begin, std::string_view value_end, std::string* to) {
  to->push_back(kValueTag);
  AppendKey(key, to);
  AppendVarint(static_cast<uint32_t>(value_begin.size() + value_end.size()), to);
  to->append(value_begin).append(value_end);
}

// Returns how many changes the row took.
uint32_t AppendRow(const RowWrite& row, std::string* to) {
  if (!row.deletes()) {
    AppendPut(EncodeKey(row.table, row.id), row.version(), {row.payload, row.payload_size}, to);
    return 1;
  }
  to->push_back(kDeletionTag);
  AppendKey(EncodeKey(row.table, row.id), to);
  if (!row.recorded) return 1;
  const DeletionRecord record = EncodeDeletion(row.step);
  AppendPut(EncodeDeletionKey(row.table, row.id), {record.data(), record.size()}, {}, to);
  return 2;
}

}  // namespace

RocksDbLogWriter::RocksDbLogWriter(const std::string& path) : file_(path, kBufferBytes, /*direct=*/true) {}

uint64_t RocksDbLogWriter::Append(std::span<const RowWrite> rows, uint64_t sequence) {
  batch_.resize(kBatchHeader);
  uint32_t changes = 0;
  for (const RowWrite& row : rows) {
    CheckTableNumber(row.table);
    changes += AppendRow(row, &batch_);
  }
  Put(sequence, batch_.data());
  Put(changes, batch_.data() + sizeof sequence);
  AppendRecord(batch_);
  return sequence + changes;
}

void RocksDbLogWriter::AppendRecord(std::string_view record) {
  for (bool first = true; first || !record.empty(); first = false) {
    const size_t left = kBlock - bytes_ % kBlock;
    if (left < kHeader) {
      file_.Append(std::string_view("\0\0\0\0\0\0", left));
      bytes_ += left;
    }
    const size_t room = kBlock - bytes_ % kBlock - kHeader;
    const std::string_view part = record.substr(0, room);
    record.remove_prefix(part.size());
    const char type = first ? record.empty() ? kFull : kFirst : record.empty() ? kLast : kMiddle;
    std::array<char, kHeader> header;
    Put(ChecksumOf(type, part), header.data());
    Put(static_cast<uint16_t>(part.size()), header.data() + 4);
    header[6] = type;
    file_.Append({header.data(), header.size()});
    file_.Append(part);
    bytes_ += kHeader + part.size();
  }
}

}  // namespace damo
