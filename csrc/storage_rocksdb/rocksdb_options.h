// How RocksDB is tuned for point reads of rows of one size, some 80 to 600 bytes, within a fixed amount of memory.
#pragma once

#include <cstddef>
#include <string>

#include "storage_rocksdb/rocksdb_store.h"

namespace rocksdb {
struct Options;
}

namespace damo {

// What one row's read takes in.
constexpr size_t kBlockBytes = 4096;

// Of the library that is loaded, which may be another than that of the build: "7.8.3".
std::string RocksDbVersion();

rocksdb::Options MakeOptions(const RocksDbOptions& options);

// Bytes that a scan or a compaction reads ahead per file.
size_t ReadaheadBytes(size_t memory_bytes);

}  // namespace damo
