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
  // RocksDB has no code for an exhausted quota or a limit on the size of files, only the system's message.
  for (const int error : {EDQUOT, EFBIG}) {
    const std::string message = std::generic_category().message(error);
    if (status.IsIOError() && status.ToString().find(message) != std::string::npos) return ErrorCode::kOutOfSpace;
  }
  return ErrorCode::kIo;
}

}  // namespace

void Check(const rocksdb::Status& status, const std::string& what) {
  if (!status.ok()) throw Error(CodeOf(status), what + ": " + status.ToString());
}

}  // namespace damo
