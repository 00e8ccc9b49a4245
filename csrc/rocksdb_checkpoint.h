// Copies of a RocksDB's files: a checkpoint of a live database, and a live database from a checkpoint
// (LinkOrCopyRocksDb in rocksdb_store.h).
#pragma once

#include <string>

namespace rocksdb {
class DB;
}

namespace damo {

// Flushes `db` and writes its state into the new directory `path`; see RowStore::Checkpoint.
// REQUIRES: no other call for the same `db` is running.
bool WriteRocksDbCheckpoint(rocksdb::DB* db, const std::string& path, bool link);

}  // namespace damo
