// RocksDB without the engine above it, opened with the engine's options.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "row/key.h"

namespace rocksdb {
class DB;
}

namespace damo::benchmarks {

// The keys of the rows that a file names: pairs of int64, table number and id, in the machine's byte order.
std::vector<Key> ReadKeys(const std::string& path);

struct RawDatabaseOptions {
  std::string path;
  size_t memory_budget;  // of a store, whose RocksDB has a share of it
  bool direct_io = false;
  bool read_only = true;
};

// Throws what damo::Check throws.
class RawDatabase {
 public:
  explicit RawDatabase(const RawDatabaseOptions& options);
  ~RawDatabase();
  RawDatabase(const RawDatabase&) = delete;
  RawDatabase& operator=(const RawDatabase&) = delete;

  // Reads rows on all of `threads` and returns how many there are. REQUIRES: sorted.
  size_t Read(std::span<const Key> keys, ThreadPool* threads) const;

  // Writes rows of so many bytes, in as many sorted writes as a store makes of them. Sorts parts of `keys`.
  void Write(std::span<Key> keys, size_t payload_bytes);

  // Waits until all that was written is in files.
  void Flush();

 private:
  std::unique_ptr<rocksdb::DB> db_;
};

}  // namespace damo::benchmarks
