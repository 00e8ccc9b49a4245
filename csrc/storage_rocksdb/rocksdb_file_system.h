// The file system as RocksDB should see it: an exhausted quota and a limit on the size of files are full disks, which
// it survives, and not failures that end the database; nor is a direct write that was written in part. Directories may
// have been filled by strangers: what is a link, a FIFO or a device in place of a file is Corruption, and never opened.
#pragma once

#include <rocksdb/env.h>

#include <memory>

#include "base/files.h"

namespace damo {

// Over the system's files; `table_files`: whether those may be links. Lives as long as the process: databases use it to
// their end.
rocksdb::Env* FileSystemEnv(Links table_files = Links::kRefuse);

// Over the files of `below`.
std::unique_ptr<rocksdb::Env> NewFileSystemEnv(std::shared_ptr<rocksdb::FileSystem> below,
                                               Links table_files = Links::kRefuse);

}  // namespace damo
