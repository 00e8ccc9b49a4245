// Files that are not, or not quite, RocksDB's logs are read as changes of rows or refused, and nothing else happens.
//
// The first byte says whether the others are a file as it is, or a batch, which gets checksums that match.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "fuzz_input.h"
#include "row/key.h"
#include "storage_rocksdb/rocksdb_log_format.h"
#include "storage_rocksdb/rocksdb_log_reader.h"

namespace {

using damo::fuzz::Require;

// The record as RocksDB frames it, in as many parts as it takes.
std::string Framed(std::string record) {
  using namespace damo::rocksdb_log;
  std::string file;
  for (bool first = true; first || !record.empty(); first = false) {
    const size_t left = kBlock - file.size() % kBlock;
    if (left < kHeader) file.append(left, '\0');
    const std::string part = record.substr(0, kBlock - file.size() % kBlock - kHeader);
    record.erase(0, part.size());
    const char type = first ? record.empty() ? kFull : kFirst : record.empty() ? kLast : kMiddle;
    std::string header(kHeader, type);
    Put(ChecksumOf(type, part), header.data());
    Put(static_cast<uint16_t>(part.size()), header.data() + 4);
    file += header + part;
  }
  return file;
}

void Use(std::span<const damo::RowWrite> rows) {
  volatile char sum = 0;
  for (const damo::RowWrite& row : rows) {
    Require(row.table < damo::kDeletionBit);
    for (size_t i = 0; row.payload != nullptr && i < row.payload_size; ++i) {
      sum = static_cast<char>(sum + row.payload[i]);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  damo::fuzz::Input input(data, size);
  const bool framed = input.Take<uint8_t>() % 4 != 0;
  const std::string bytes = framed ? Framed(input.Rest()) : input.Rest();
  bool given = false;
  const auto next = [&] { return std::exchange(given, true) ? std::string_view() : std::string_view(bytes); };
  try {
    const std::optional<uint64_t> sequence = damo::ReadLog("the log", next, Use);
    Require(!sequence || *sequence < uint64_t{1} << 56);
  } catch (const damo::Error& error) {
    Require(error.code() == damo::ErrorCode::kCorruption && std::string(error.what()).starts_with("the log: "));
  }
  return 0;
}
