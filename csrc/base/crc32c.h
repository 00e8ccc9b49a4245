// CRC-32C (Castagnoli), the checksum of RFC 3720, as RocksDB's logs have it.
#pragma once

#include <cstdint>
#include <string_view>

namespace damo {

// The checksum of some bytes with `bytes` behind them; `crc` is that of the former, 0 where there are none.
uint32_t ExtendCrc32c(uint32_t crc, std::string_view bytes);

}  // namespace damo
