// Copies of a RocksDB's files: of a live one into a checkpoint, and of a checkpoint into a
// live one (LinkOrCopyRocksDb in rocksdb_store.h).
#pragma once

#include <string>

namespace rocksdb {
class DB;
}

namespace damo {

// Writes what `db` has in table files into the new directory `path`, a RocksDB, too; see RowStore::Checkpoint.
bool CopyRocksDb(rocksdb::DB* db, const std::string& path, bool link);

}  // namespace damo
