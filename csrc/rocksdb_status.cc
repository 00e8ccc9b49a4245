#include "rocksdb_status.h"

#include <rocksdb/status.h>

#include <cerrno>
#include <system_error>

#include "status.h"

namespace damo {
namespace {

ErrorCode CodeOf(const rocksdb::Status& status) {
  if (status.IsCorruption()) return ErrorCode::kCorruption;
  if (status.IsNoSpace()) return ErrorCode::kOutOfSpace;
  // RocksDB has no code for an exhausted quota, only the system's message.
  const std::string quota = std::generic_category().message(EDQUOT);
  if (status.IsIOError() && status.ToString().find(quota) != std::string::npos) return ErrorCode::kOutOfSpace;
  return ErrorCode::kIo;
}

}  // namespace

void Check(const rocksdb::Status& status, const std::string& what) {
  if (!status.ok()) throw Error(CodeOf(status), what + ": " + status.ToString());
}

}  // namespace damo
