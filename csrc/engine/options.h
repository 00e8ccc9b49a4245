// How a store is opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace damo {

struct StoreOptions {
  size_t memory_budget = size_t{1} << 30;  // bytes, for everything the store keeps in memory
  int num_threads = 1;
  std::string instruction_set = "auto";
  bool direct_io = false;
  bool read_only = false;
  // For the files in `directory`, bytes; 0 for no limit.
  uint64_t disk_budget = 0;
  std::string directory = {};
  // Keep a CacheProfile, of ids sampled at 1 / 2^profile_shift to begin with.
  bool profile_cache = false;
  int profile_shift = 0;
  // For tests: a cache that never holds more than so many bytes of rows between operations; 0 for the budget's share.
  size_t cache_bytes = 0;
};

}  // namespace damo
