#include "base/crc32c.h"

#include <array>
#include <cstddef>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

namespace damo {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // its bits reversed

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

uint32_t ExtendPlain(uint32_t crc, const char* bytes, size_t n) {
  static constexpr std::array<uint32_t, 256> kTable = MakeTable();
  for (size_t i = 0; i < n; ++i) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(bytes[i])) & 0xFF];
  return crc;
}

[[maybe_unused]] uint64_t Word(const char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t ExtendHardware(uint32_t crc, const char* bytes, size_t n) {
  uint64_t wide = crc;
  for (; n >= 8; n -= 8, bytes += 8) wide = _mm_crc32_u64(wide, Word(bytes));
  crc = static_cast<uint32_t>(wide);
  for (; n > 0; --n, ++bytes) crc = _mm_crc32_u8(crc, static_cast<unsigned char>(*bytes));
  return crc;
}

uint32_t Extend(uint32_t crc, const char* bytes, size_t n) {
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  return hardware ? ExtendHardware(crc, bytes, n) : ExtendPlain(crc, bytes, n);
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_CRC32)
uint32_t Extend(uint32_t crc, const char* bytes, size_t n) {
  for (; n >= 8; n -= 8, bytes += 8) crc = __crc32cd(crc, Word(bytes));
  for (; n > 0; --n, ++bytes) crc = __crc32cb(crc, static_cast<unsigned char>(*bytes));
  return crc;
}
#else
uint32_t Extend(uint32_t crc, const char* bytes, size_t n) { return ExtendPlain(crc, bytes, n); }
#endif

}  // namespace

uint32_t ExtendCrc32c(uint32_t crc, std::string_view bytes) { return ~Extend(~crc, bytes.data(), bytes.size()); }

}  // namespace damo
