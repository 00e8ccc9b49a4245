// The file system as RocksDB should see it: an exhausted quota and a limit on the size of files are full disks, which
// it survives, and not failures that end the database; nor is a direct write that was written in part.
#pragma once

#include <rocksdb/env.h>

#include <memory>

namespace damo {

// Over the system's files. Lives as long as the process: databases use it to their end.
rocksdb::Env* FileSystemEnv();

// Over the files of `below`.
std::unique_ptr<rocksdb::Env> NewFileSystemEnv(std::shared_ptr<rocksdb::FileSystem> below);

}  // namespace damo
