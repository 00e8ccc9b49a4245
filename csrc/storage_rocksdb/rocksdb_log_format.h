// The bytes of RocksDB's write-ahead logs, for who writes them and who reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/crc32c.h"

namespace damo::rocksdb_log {

// A file is a sequence of blocks. A record lies in one block whole, or in several in parts; each part has a header of
// its masked checksum, u32, its length, u16, and its type, u8. Where less than a header is left of a block it is zero.
inline constexpr size_t kBlock = 32768;
inline constexpr size_t kHeader = 7;
enum Type : char { kFull = 1, kFirst = 2, kMiddle = 3, kLast = 4 };

// A batch begins with the sequence number of its first change, u64, and how many there are, u32.
inline constexpr size_t kBatchHeader = 12;
// The numbers of changes end at 2^56; no database comes anywhere near half of that.
inline constexpr uint64_t kMostSequence = uint64_t{1} << 55;
inline constexpr char kDeletionTag = 0, kValueTag = 1;

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

inline uint32_t Masked(uint32_t crc) { return (crc >> 15 | crc << 17) + 0xA282EAD8; }

// What a part's header says of its type and its bytes.
inline uint32_t ChecksumOf(char type, std::string_view part) {
  return Masked(ExtendCrc32c(ExtendCrc32c(0, {&type, 1}), part));
}

}  // namespace damo::rocksdb_log
