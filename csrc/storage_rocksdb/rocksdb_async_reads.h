// Files for direct reads that have the reads of one MultiGet under way together. RocksDB does so only where it was
// built with liburing, which distributions leave out; otherwise a disk is kept busy by threads alone, one for each
// read.
#pragma once

#include <rocksdb/file_system.h>

#include <memory>
#include <string>

namespace damo {

// `file`, with a MultiRead by Linux's native asynchronous I/O. Returns it as it is where the system has none.
// REQUIRES: it was opened for direct reads.
std::unique_ptr<rocksdb::FSRandomAccessFile> WithAsyncReads(std::unique_ptr<rocksdb::FSRandomAccessFile> file,
                                                            const std::string& path);

// Whether the calling thread's reads can be under way together.
bool HasAsyncReads();

}  // namespace damo
