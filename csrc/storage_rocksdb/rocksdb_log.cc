#include "storage_rocksdb/rocksdb_log.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/crc32c.h"
#include "base/status.h"
#include "row/key.h"
#include "row/record.h"

namespace damo {
namespace {

// A file is a sequence of blocks. A record lies in one block whole, or in several in parts; each part has a header of
// its masked checksum, u32, its length, u16, and its type, u8. Where less than a header is left of a block it is zero.
constexpr size_t kBlock = 32768;
constexpr size_t kHeader = 7;
enum Type : char { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };

// A batch begins with the sequence number of its first change, u64, and how many there are, u32.
constexpr size_t kBatchHeader = 12;
constexpr char kDeletionTag = 0, kValueTag = 1;

constexpr size_t kBufferBytes = size_t{1} << 20;

template <class T>
void Put(T value, char* to) {
  for (size_t i = 0; i < sizeof value; ++i) to[i] = static_cast<char>(value >> (8 * i));
}

template <class T>
T Get(const char* from) {
  T value = 0;
  for (size_t i = sizeof value; i-- > 0;) value = static_cast<T>(value << 8 | static_cast<unsigned char>(from[i]));
  return value;
}

uint32_t Masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8; }

// What a part's header says of its type and its bytes.
uint32_t ChecksumOf(char type, std::string_view part) {
  return Masked(ExtendCrc32c(ExtendCrc32c(0, {&type, 1}), part));
}

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
  if (row.payload != nullptr) {
    AppendPut(EncodeKey(row.table, row.id), {&kRecordVersion, 1}, {row.payload, row.payload_size}, to);
    return 1;
  }
  to->push_back(kDeletionTag);
  AppendKey(EncodeKey(row.table, row.id), to);
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

void VerifyLogFile(const std::string& path) {
  File file(path, O_RDONLY);
  std::vector<char> block(kBlock);
  bool within = false;  // a record
  for (uint64_t begin = 0;; begin += kBlock) {
    size_t size = 0;
    while (size < kBlock) {
      const size_t n = file.Read(block.data() + size, kBlock - size);
      if (n == 0) break;
      size += n;
    }
    const auto damaged = [&](size_t at) {
      return Error(ErrorCode::kCorruption,
                   path + ": what is at byte " + std::to_string(begin + at) + " is not a record of a log");
    };
    size_t at = 0;
    while (size - at >= kHeader) {
      const char* header = block.data() + at;
      const size_t length = Get<uint16_t>(header + 4);
      const char type = header[6];
      const bool fits = type == kFull || type == kFirst ? !within : (type == kMiddle || type == kLast) && within;
      if (!fits || length > size - at - kHeader) throw damaged(at);
      if (Get<uint32_t>(header) != ChecksumOf(type, {header + kHeader, length})) throw damaged(at);
      within = type == kFirst || type == kMiddle;
      at += kHeader + length;
    }
    if (std::any_of(block.begin() + static_cast<ptrdiff_t>(at), block.begin() + static_cast<ptrdiff_t>(size),
                    [](char byte) { return byte != 0; })) {
      throw damaged(at);
    }
    if (size == kBlock) continue;
    if (within || at != size) throw damaged(size);
    return;
  }
}

}  // namespace damo
