// Rows on disk, in a RocksDB with one column family that writes no write-ahead log: what a crash leaves behind is the
// last checkpoint, whose logs are the journal. docs/format.md describes the bytes. This header is free of RocksDB's
// own; only rocksdb_*.cc include them.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/files.h"
#include "storage/row_store.h"

namespace rocksdb {
class Env;
}

namespace damo {

struct RocksDbOptions {
  std::string path;        // the database's directory
  bool create = false;     // make a new database, an existing one is an error; else open the one that is there
  bool read_only = false;  // writes nothing at all, not even a log file; Write and Checkpoint throw

  // What RocksDB may keep in memory: block cache with index and filter blocks, table readers, and memtables. At least
  // 8 MiB. Beyond it come the copy of the rows that a Write makes while it runs, and the buffers of flushes,
  // compactions and scans, some 10 MiB. A Write should be well below memory_bytes / 8: it lands in one memtable.
  size_t memory_bytes = size_t{64} << 20;

  int num_threads = 2;     // background flushes and compactions together, within 2..4
  bool direct_io = false;  // bypass the page cache

  // Whether table files may be links: in a directory that is the caller's own, to files that he has looked at.
  Links table_files = Links::kRefuse;

  // For tests: where files are instead of FileSystemEnv() (rocksdb_file_system.h). It outlives the store.
  rocksdb::Env* env = nullptr;
};

// Throws kCorruption, kOutOfSpace or kIo, and kInvalidArgument for options that contradict each other. kCorruption,
// too, for a link, a FIFO or a device in place of a file, and for changes with numbers that leave none for those to
// come.
//
// How this one keeps the RowStore's promises: a MultiGet runs on the calling thread; call it from several with parts of
// the ids to keep a disk busy. On a full disk Write and Checkpoint throw at once, and reads go on; rows that
// were written stay in memory, and a later Write or Checkpoint goes on once there is space, some seconds later at most.
// A snapshot or RowIterator that outlives Close keeps the files open until it is destroyed.
std::unique_ptr<RowStore> OpenRocksDbStore(const RocksDbOptions& options);

// Makes the new directory `to` a database with the rows of `from`, a checkpoint's database that nobody writes. Table
// files and logs, which never change, are hard-linked where the file system allows it and copied otherwise; all others
// are copied, so that nothing done to `to` reaches `from`. Without `logs` it has the rows of the table files alone.
// Everything is synced. Throws kOutOfSpace or kIo, and kCorruption if `from` has anything but regular files.
// REQUIRES: `to` does not exist, its parent does.
void LinkOrCopyRocksDb(const std::string& from, const std::string& to, bool logs = true);

}  // namespace damo
