#include "storage_rocksdb/rocksdb_log_reader.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "base/read_ahead.h"
#include "base/status.h"
#include "row/key.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_log_format.h"

namespace damo {

using namespace rocksdb_log;

namespace {

// A multiple of kBlock. What keeps a disk busy that is read past the page cache.
constexpr size_t kBufferBytes = size_t{4} << 20;

// No row is larger. What is read is kept until a value is there whole.
constexpr uint64_t kMostValue = uint64_t{1} << 29;

Error DamagedAt(const std::string& path, uint64_t at) {
  return Error(ErrorCode::kCorruption, path + ": what is at byte " + std::to_string(at) + " is not a record of a log");
}

// Calls part(bytes, ends) for the parts of a file's records; `ends`: it is a record's last. Throws as ReadLog.
template <class F>
class PartReader {
 public:
  PartReader(const std::string& path, F part) : path_(path), part_(std::move(part)) {}

  void Read(const std::function<std::string_view()>& next) {
    uint64_t begin = 0;
    for (std::string_view bytes = next(); !bytes.empty(); bytes = next()) {
      for (size_t at = 0; at < bytes.size(); at += kBlock) ReadBlock(bytes.substr(at, kBlock), begin + at);
      begin += bytes.size();
    }
    if (within_) throw DamagedAt(path_, begin);
  }

 private:
  // A block that begins at `begin`; the last one may be shorter than the others.
  void ReadBlock(std::string_view block, uint64_t begin) {
    size_t at = 0;
    while (block.size() - at >= kHeader) {
      const char* header = block.data() + at;
      const size_t length = Get<uint16_t>(header + 4);
      const char type = header[6];
      const bool fits = type == kFull || type == kFirst ? !within_ : (type == kMiddle || type == kLast) && within_;
      if (!fits || length > block.size() - at - kHeader) throw DamagedAt(path_, begin + at);
      const std::string_view bytes(header + kHeader, length);
      if (Get<uint32_t>(header) != ChecksumOf(type, bytes)) throw DamagedAt(path_, begin + at);
      within_ = type == kFirst || type == kMiddle;
      part_(bytes, !within_);
      at += kHeader + length;
    }
    const std::string_view rest = block.substr(at);
    if (block.size() < kBlock && !rest.empty()) throw DamagedAt(path_, begin + block.size());
    if (rest.find_first_not_of('\0') != std::string_view::npos) throw DamagedAt(path_, begin + at);
  }

  const std::string& path_;
  F part_;
  bool within_ = false;  // a record
};

// ---- what a batch holds. Each of these takes something from the front of `from`, and nothing, if it is not all there.

std::optional<char> TakeByte(std::string_view* from) {
  if (from->empty()) return std::nullopt;
  const char byte = from->front();
  from->remove_prefix(1);
  return byte;
}

// Bytes behind their size, a varint.
std::optional<std::string_view> TakeBytes(std::string_view* from) {
  std::string_view rest = *from;
  uint64_t size = 0;
  for (int shift = 0;; shift += 7) {
    const std::optional<char> byte = TakeByte(&rest);
    if (!byte) return std::nullopt;
    if (shift > 28) throw Error(ErrorCode::kCorruption, "a size of more than five bytes");
    size |= uint64_t{static_cast<unsigned char>(*byte) & 127u} << shift;
    if (!(*byte & 128)) break;
  }
  if (size > kMostValue) throw Error(ErrorCode::kCorruption, "a value of " + std::to_string(size) + " bytes");
  if (rest.size() < size) return std::nullopt;
  *from = rest.substr(size);
  return rest.substr(0, size);
}

std::optional<std::string_view> TakeKey(std::string_view* from) {
  const std::optional<std::string_view> key = TakeBytes(from);
  if (key && key->size() != kKeySize) {
    throw Error(ErrorCode::kCorruption, "a key of " + std::to_string(key->size()) + " bytes");
  }
  return key;
}

// The record that follows a row's deletion, if it left one. Returns whether what follows is known.
bool TakeDeletionRecord(std::string_view* from, RowWrite* row) {
  std::string_view rest = *from;
  const std::optional<char> tag = TakeByte(&rest);
  const std::optional<std::string_view> key = tag ? TakeKey(&rest) : std::nullopt;
  if (!key) return false;
  row->recorded = *tag == kValueTag && *key == EncodeDeletionKey(row->table, row->id).view();
  if (!row->recorded) return true;
  const std::optional<std::string_view> value = TakeBytes(&rest);
  if (!value) return false;
  row->step = DecodeDeletion(RowPayload(*value, kDeletionSize, row->table, row->id));
  *from = rest;
  return true;
}

// Returns of how many changes the row was made; 0: nothing is taken. `changes_left`: of the batch.
uint32_t TakeRow(std::string_view* from, uint32_t changes_left, RowWrite* row) {
  std::string_view rest = *from;
  const std::optional<char> tag = TakeByte(&rest);
  const std::optional<std::string_view> key = tag ? TakeKey(&rest) : std::nullopt;
  if (!key) return 0;
  *row = {DecodeTable(*key), DecodeId(*key), nullptr, 0, 0};
  if ((*tag != kValueTag && *tag != kDeletionTag) || row->table & kDeletionBit) {
    throw Error(ErrorCode::kCorruption, RowName(row->table, row->id) + ": a change of type " +
                                            std::to_string(static_cast<unsigned char>(*tag)) + " that no journal has");
  }
  if (*tag == kDeletionTag) {
    row->recorded = false;
    if (changes_left > 1 && !TakeDeletionRecord(&rest, row)) return 0;
  } else {
    const std::optional<std::string_view> value = TakeBytes(&rest);
    if (!value) return 0;
    row->payload = RowPayload(*value, value->size() - 1, row->table, row->id);
    row->payload_size = value->size() - 1;
    row->sighting = IsSighting(*value);
  }
  *from = rest;
  return row->deletes() && row->recorded ? 2 : 1;
}

// Hands on the rows of batches whose bytes come in parts.
class BatchReader {
 public:
  BatchReader(const std::function<void(std::span<const RowWrite>)>& apply, std::optional<uint64_t> sequence)
      : apply_(apply), sequence_(sequence) {}

  std::optional<uint64_t> sequence() const { return sequence_; }

  void Add(std::string_view part, bool ends) {
    batch_.append(part);
    if (ends || batch_.size() >= kBytesAtOnce) HandOn();
    if (!ends) return;
    if (!batch_.empty() || changes_left_ != 0) throw Error(ErrorCode::kCorruption, "a batch that ends within a change");
    changes_left_.reset();
  }

 private:
  static constexpr size_t kBytesAtOnce = size_t{256} << 10;

  void HandOn() {
    std::string_view left = batch_;
    if (!changes_left_ && left.size() >= kBatchHeader) {
      TakeHeader(left.data());
      left.remove_prefix(kBatchHeader);
    }
    rows_.clear();
    RowWrite row;
    while (const uint32_t changes = changes_left_ ? TakeRow(&left, *changes_left_, &row) : 0) {
      if (changes > *changes_left_) throw Error(ErrorCode::kCorruption, "a batch of more changes than it says");
      *changes_left_ -= changes;
      rows_.push_back(row);
    }
    if (!rows_.empty()) apply_(rows_);
    batch_.erase(0, batch_.size() - left.size());
  }

  void TakeHeader(const char* header) {
    const auto sequence = Get<uint64_t>(header);
    if (sequence_ && sequence != *sequence_) {
      throw Error(ErrorCode::kCorruption, "a batch that begins with change " + std::to_string(sequence) +
                                              ", expected " + std::to_string(*sequence_) +
                                              ": something is missing, or in another order");
    }
    if (sequence > kMostSequence) {
      throw Error(ErrorCode::kCorruption, "a batch that begins with change " + std::to_string(sequence) +
                                              ", expected at most " + std::to_string(kMostSequence));
    }
    changes_left_ = Get<uint32_t>(header + sizeof sequence);
    sequence_ = sequence + *changes_left_;
  }

  const std::function<void(std::span<const RowWrite>)>& apply_;
  std::string batch_;
  std::vector<RowWrite> rows_;
  std::optional<uint32_t> changes_left_;  // of the batch; none before its header
  std::optional<uint64_t> sequence_;      // of the next batch; none: any
};

}  // namespace

std::optional<uint64_t> ReadLog(const std::string& name, const std::function<std::string_view()>& next,
                                const std::function<void(std::span<const RowWrite>)>& apply,
                                std::optional<uint64_t> sequence) {
  BatchReader batches(apply, sequence);
  PartReader(name, [&](std::string_view part, bool ends) {
    try {
      batches.Add(part, ends);
    } catch (const Error& error) {
      throw error.code() == ErrorCode::kCorruption ? Error(error.code(), name + ": " + error.what()) : error;
    }
  }).Read(next);
  return batches.sequence();
}

std::optional<uint64_t> ReadLogFile(const std::string& path,
                                    const std::function<void(std::span<const RowWrite>)>& apply,
                                    std::optional<uint64_t> sequence) {
  ReadAheadFile file(path, kBufferBytes);
  return ReadLog(path, [&] { return file.Next(); }, apply, sequence);
}

void VerifyLogFile(const std::string& path) {
  ReadLogFile(path, [](std::span<const RowWrite>) {});
}

}  // namespace damo
