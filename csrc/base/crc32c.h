// CRC-32C (Castagnoli), the checksum of RFC 3720, as RocksDB's logs have it.
#pragma once

#include <cstdint>
#include <string_view>

namespace damo {

// The checksum of the bytes that have the checksum `crc`, 0 for none, with `bytes` behind them.
uint32_t ExtendCrc32c(uint32_t crc, std::string_view bytes);

}  // namespace damo
