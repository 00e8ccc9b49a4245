// What the disk can do, without RocksDB.
#pragma once

#include <string>
#include <vector>

namespace damo::benchmarks {

// Reads blocks of 4 KiB, aligned and at random places of `files`, past the page cache, with `in_flight` of them under
// way at any time. Throws kIo, also where the file system has no direct I/O.
double RandomReadsPerSecond(const std::vector<std::string>& files, int in_flight, double seconds);

}  // namespace damo::benchmarks
