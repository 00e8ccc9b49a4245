#include "storage_rocksdb/rocksdb_status.h"

#include <rocksdb/status.h>

#include "base/status.h"

namespace damo {
namespace {

ErrorCode CodeOf(const rocksdb::Status& status) {
  if (status.IsCorruption()) return ErrorCode::kCorruption;
  if (status.IsNoSpace()) return ErrorCode::kOutOfSpace;
  return ErrorCode::kIo;
}

}  // namespace

void Check(const rocksdb::Status& status, const std::string& what) {
  if (!status.ok()) throw Error(CodeOf(status), what + ": " + status.ToString());
}

void CheckRead(const rocksdb::Status& status, const std::string& what) {
  if (status.IsNotSupported() || status.IsInvalidArgument() || status.IsMergeInProgress()) {
    throw Error(ErrorCode::kCorruption, what + ": " + status.ToString());
  }
  Check(status, what);
}

}  // namespace damo
