#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace damo::testing {

// A row's payload that no other (table, id, version) has.
inline std::string Payload(size_t size, uint32_t table, int64_t id, uint64_t version = 0) {
  std::string payload;
  uint64_t x = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15 + table * 0xd1342543de82ef95 + version + 1;
  while (payload.size() < size) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    payload.append(reinterpret_cast<const char*>(&x), sizeof(x));
  }
  payload.resize(size);
  return payload;
}

}  // namespace damo::testing
