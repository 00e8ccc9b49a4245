// Copies of a RocksDB's files: of a live one into a checkpoint, and of a checkpoint into a
// live one (LinkOrCopyRocksDb in rocksdb_store.h).
#pragma once

#include <span>
#include <string>

#include "storage_rocksdb/rocksdb_journal.h"

namespace rocksdb {
class DB;
}

namespace damo {

// Writes what `db` has in table files, and the changes in `logs` after that, into the new directory `path`, a RocksDB,
// too; see RowStore::Checkpoint.
bool CopyRocksDb(rocksdb::DB* db, const std::string& path, bool link, std::span<const RocksDbJournal::LogFile> logs);

}  // namespace damo
