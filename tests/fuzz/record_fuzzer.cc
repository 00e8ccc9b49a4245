// Bytes from disk, whatever they are, are decoded to what they stand for or refused: the value and the key of a row,
// and weights of 16 bits. Aborts where they are not.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "row/key.h"
#include "row/record.h"
#include "row/weight_type.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

// A row of `payload_size` bytes, or sightings, are found in `value` if and only if that is what it is.
void CheckRow(std::string_view value, size_t payload_size) {
  const bool row = value.size() == payload_size + 1 && value[0] == damo::kRecordVersion;
  const bool sighting = value.size() == sizeof(damo::RowHeader) + 1 && value[0] == damo::kSightingVersion;
  const bool valid = row || sighting;
  try {
    const char* payload = damo::RowPayload(value, payload_size, 1, 2);
    Require(valid && payload == value.data() + 1);
  } catch (const damo::Error& error) {
    Require(!valid && error.code() == damo::ErrorCode::kCorruption);
  }
}

void CheckKey(std::string_view bytes) {
  if (bytes.size() < damo::kKeySize) return;
  const std::string_view key = bytes.substr(0, damo::kKeySize);
  const int64_t id = damo::DecodeId(key);
  const uint32_t table = damo::DecodeTable(key);
  Require(damo::EncodeKey(table, id).view() == key);
  if (table >= damo::kDeletionBit) {
    Require(damo::EncodeDeletionKey(table - damo::kDeletionBit, id).view() == key);
  } else {
    Require(damo::FirstKey(table).view() <= key && key <= damo::LastKey(table).view());
  }
}

// What IEEE 754 says of 16 bits with so many for the exponent.
double Half(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, largest = (1 << exponent_bits) - 1, bias = largest / 2;
  const int exponent = bits >> mantissa_bits & largest, mantissa = bits & ((1 << mantissa_bits) - 1);
  const double magnitude = exponent == largest ? (mantissa == 0 ? HUGE_VAL : NAN)
                           : exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                                           : std::ldexp(mantissa | 1 << mantissa_bits, exponent - bias - mantissa_bits);
  return std::copysign(magnitude, bits >> 15 ? -1 : 1);
}

void CheckHalves(damo::WeightType type, int exponent_bits, std::string_view bytes) {
  std::vector<uint16_t> halves(bytes.size() / sizeof(uint16_t));
  if (halves.empty()) return;
  std::memcpy(halves.data(), bytes.data(), halves.size() * sizeof(uint16_t));
  std::vector<float> weights(halves.size());
  damo::DecodeWeights(type, static_cast<int>(halves.size()), bytes.data(), weights.data());
  for (size_t i = 0; i < halves.size(); ++i) {
    const double expected = Half(halves[i], exponent_bits);
    Require(std::signbit(weights[i]) == std::signbit(expected));
    Require(std::isnan(expected) ? std::isnan(weights[i]) : weights[i] == expected);
  }
}

// Weights that were read are written as the same bytes: what 16 bits can hold is not rounded. Of what is no number, an
// infinity is written as the largest number, and of NaNs the sign alone is kept.
void CheckWeights(damo::WeightType type, std::string_view bytes) {
  const size_t size = type == damo::WeightType::kFloat32 ? sizeof(float) : sizeof(uint16_t);
  const int dim = static_cast<int>(bytes.size() / size);
  std::vector<float> weights(static_cast<size_t>(dim)), again(weights.size());
  damo::DecodeWeights(type, dim, bytes.data(), weights.data());
  std::vector<char> written(damo::WeightBytes(type, dim));
  damo::EncodeWeights(type, dim, weights.data(), written.data());
  damo::DecodeWeights(type, dim, written.data(), again.data());
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool same = std::memcmp(bytes.data() + i * size, written.data() + i * size, size) == 0;
    const uint32_t bits = damo::FloatBits(weights[i]) & 0x7FFFFFFF;
    if (type == damo::WeightType::kFloat32 || bits < damo::kInfinity) {
      Require(same);
    } else {
      Require(std::isnan(weights[i]) == std::isnan(again[i]));
      Require(std::signbit(weights[i]) == std::signbit(again[i]));
    }
  }
}

}  // namespace

// The first two bytes are the size that a row is expected to have, the others what is on disk.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  if (input.size() < 2) return 0;
  // A copy of its own, so that a sanitizer sees what is read past its end.
  const std::vector<char> copy(input.begin() + 2, input.end());
  const std::string_view value(copy.data(), copy.size());
  CheckRow(value, data[0] | data[1] << 8);
  CheckRow(value, value.size() - std::min<size_t>(value.size(), 1));
  CheckKey(value);
  CheckHalves(damo::WeightType::kFloat16, 5, value);
  CheckHalves(damo::WeightType::kBfloat16, 8, value);
  for (const auto type : {damo::WeightType::kFloat32, damo::WeightType::kFloat16, damo::WeightType::kBfloat16}) {
    CheckWeights(type, value);
  }
  return 0;
}
