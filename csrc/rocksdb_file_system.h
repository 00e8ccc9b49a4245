// The file system as RocksDB should see it: an exhausted quota and a limit on the size of files are full disks, which
// it waits out, and not failures that end the database.
#pragma once

#include <rocksdb/env.h>

namespace damo {

// Lives as long as the process: databases use it to their end.
rocksdb::Env* FileSystemEnv();

}  // namespace damo
