// RocksDB's outcomes as ours, in one place.
#pragma once

#include <string>

namespace rocksdb {
class Status;
}

namespace damo {

// Throws unless `status` is OK: kCorruption, kOutOfSpace, or kIo for all else, NotFound too. The message is `what`,
// which names what was being done, followed by RocksDB's, which names the file.
void Check(const rocksdb::Status& status, const std::string& what);

// The same of reads, whose only arguments are what files hold: what RocksDB does not support, or takes for arguments
// that contradict each other, such as records of a kind that this project does not write, is kCorruption, too.
void CheckRead(const rocksdb::Status& status, const std::string& what);

}  // namespace damo
