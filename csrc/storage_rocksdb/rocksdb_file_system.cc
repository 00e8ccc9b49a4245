#include "storage_rocksdb/rocksdb_file_system.h"

#include <fcntl.h>
#include <rocksdb/file_system.h>

#include <cerrno>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "base/files.h"
#include "base/status.h"
#include "storage_rocksdb/rocksdb_async_reads.h"

namespace damo {
namespace {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// RocksDB keeps the system's error as its message alone.
bool Says(const IOStatus& status, int error) {
  return status.ToString().find(std::generic_category().message(error)) != std::string::npos;
}

IOStatus AsNoSpace(IOStatus status) {
  if (!status.IsIOError() || status.IsNoSpace()) return status;
  return Says(status, EDQUOT) || Says(status, EFBIG) ? IOStatus::NoSpace(status.ToString()) : status;
}

// The same of an operation that was to write so many bytes, and says so.
IOStatus AsNoSpace(IOStatus status, size_t bytes) {
  status = AsNoSpace(std::move(status));
  if (!status.IsNoSpace()) return status;
  const char* const text = status.getState();
  IOStatus told =
      IOStatus::NoSpace((text != nullptr ? text : "") + std::string(", for ") + std::to_string(bytes) + " more bytes");
  told.SetRetryable(status.GetRetryable());
  told.SetDataLoss(status.GetDataLoss());
  told.SetScope(status.GetScope());
  return told;
}

class WritableFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  WritableFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string path)
      : FSWritableFileOwnerWrapper(std::move(file)), path_(std::move(path)) {}

  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Append(data, options, context), data.size());
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo& info,
                  IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Append(data, options, info, context), data.size());
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            IODebugContext* context) override {
    return AsNoSpace(
        Rewritten(FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, context), data, offset),
        data.size());
  }
  IOStatus PositionedAppend(const Slice& data, uint64_t offset, const IOOptions& options,
                            const rocksdb::DataVerificationInfo& info, IODebugContext* context) override {
    return AsNoSpace(
        Rewritten(FSWritableFileOwnerWrapper::PositionedAppend(data, offset, options, info, context), data, offset),
        data.size());
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Truncate(size, options, context));
  }
  IOStatus Flush(const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Flush(options, context));
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Sync(options, context));
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Fsync(options, context));
  }
  IOStatus Close(const IOOptions& options, IODebugContext* context) override {
    return AsNoSpace(FSWritableFileOwnerWrapper::Close(options, context));
  }

 private:
  // What becomes of a write at `offset`. If the system writes a part of a direct one that ends within a block, RocksDB
  // goes on from there, which the system refuses: then all of it goes through the page cache.
  IOStatus Rewritten(IOStatus status, const Slice& data, uint64_t offset) const {
    if (status.ok() || !use_direct_io() || !Says(status, EINVAL)) return status;
    try {
      File(path_, O_WRONLY).WriteAt({data.data(), data.size()}, offset);
      return IOStatus::OK();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfSpace) return IOStatus::IOError(error.what());
      status = IOStatus::NoSpace(error.what());
      status.SetRetryable(true);  // as RocksDB's own file system has it
      return status;
    }
  }

  const std::string path_;
};

class FileSystem : public rocksdb::FileSystemWrapper {
 public:
  FileSystem(std::shared_ptr<rocksdb::FileSystem> below, Links table_files)
      : FileSystemWrapper(std::move(below)), table_files_(table_files) {}

  const char* Name() const override { return "damo"; }

  IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file, IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    if (status.ok()) status = FileSystemWrapper::NewWritableFile(path, options, file, context);
    if (status.ok()) *file = std::make_unique<WritableFile>(std::move(*file), path);
    return AsNoSpace(std::move(status));
  }

  IOStatus ReopenWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* file, IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    return status.ok() ? FileSystemWrapper::ReopenWritableFile(path, options, file, context) : status;
  }

  IOStatus NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* file, IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    return status.ok() ? FileSystemWrapper::NewSequentialFile(path, options, file, context) : status;
  }

  IOStatus NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file, IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    if (status.ok()) status = FileSystemWrapper::NewRandomAccessFile(path, options, file, context);
    if (status.ok() && options.use_direct_reads) *file = WithAsyncReads(std::move(*file), path);
    return status;
  }

  IOStatus NewRandomRWFile(const std::string& path, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSRandomRWFile>* file, IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    return status.ok() ? FileSystemWrapper::NewRandomRWFile(path, options, file, context) : status;
  }

  IOStatus LockFile(const std::string& path, const IOOptions& options, rocksdb::FileLock** lock,
                    IODebugContext* context) override {
    IOStatus status = CheckFile(path);
    return status.ok() ? FileSystemWrapper::LockFile(path, options, lock, context) : status;
  }

 private:
  // Corruption unless it is a regular file, or nothing.
  IOStatus CheckFile(const std::string& path) const {
    const std::string found = OddFileAt(path, path.ends_with(".sst") ? table_files_ : Links::kRefuse);
    return found.empty() ? IOStatus::OK() : IOStatus::Corruption(path, "expected a regular file, found " + found);
  }

  const Links table_files_;
};

}  // namespace

std::unique_ptr<rocksdb::Env> NewFileSystemEnv(std::shared_ptr<rocksdb::FileSystem> below, Links table_files) {
  return rocksdb::NewCompositeEnv(std::make_shared<FileSystem>(std::move(below), table_files));
}

rocksdb::Env* FileSystemEnv(Links table_files) {
  static rocksdb::Env* const plain = NewFileSystemEnv(rocksdb::FileSystem::Default()).release();
  static rocksdb::Env* const linked = NewFileSystemEnv(rocksdb::FileSystem::Default(), Links::kFollow).release();
  return table_files == Links::kFollow ? linked : plain;
}

}  // namespace damo
