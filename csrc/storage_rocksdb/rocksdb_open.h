// Databases that are opened for a while beside a store's own: to be read, checked, or made of others. For
// rocksdb_*.cc alone.
#pragma once

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/version.h>

#include <cstddef>
#include <memory>
#include <string>

#include "storage_rocksdb/rocksdb_options.h"
#include "storage_rocksdb/rocksdb_status.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo {

inline rocksdb::Options SideOptions(const std::string& path, bool create = false) {
  RocksDbOptions options;
  options.path = path;
  options.create = create;
  options.memory_bytes = size_t{64} << 20;
  return MakeOptions(options);
}

// What `open` gives, which is handed the place for it. Throws kCorruption or kIo, as the others.
template <class Open>
std::unique_ptr<rocksdb::DB> OpenDb(const std::string& path, Open open) {
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
  Check(open(&db), "cannot open " + path);
  return db;
#else
  rocksdb::DB* db = nullptr;
  Check(open(&db), "cannot open " + path);
  return std::unique_ptr<rocksdb::DB>(db);
#endif
}

inline std::unique_ptr<rocksdb::DB> OpenReadOnly(const rocksdb::Options& options, const std::string& path) {
  return OpenDb(path, [&](auto* db) { return rocksdb::DB::OpenForReadOnly(options, path, db); });
}

inline std::unique_ptr<rocksdb::DB> OpenReadWrite(const rocksdb::Options& options, const std::string& path) {
  return OpenDb(path, [&](auto* db) { return rocksdb::DB::Open(options, path, db); });
}

inline void CloseDb(std::unique_ptr<rocksdb::DB>* db) {
  if (*db == nullptr) return;
  rocksdb::CancelAllBackgroundWork(db->get(), /*wait=*/true);
  db->reset();
}

}  // namespace damo
