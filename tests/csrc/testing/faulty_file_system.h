// A file system for RocksDB, and the system calls of files.cc, of which one operation fails, or all from one on.
#pragma once

#include <rocksdb/file_system.h>

#include <cerrno>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "testing/system_calls.h"

namespace damo::testing {

using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// The `nth` operation of this name, from 1, fails; with `for_good` all that follow, of any name, do so, too.
struct Fault {
  std::string operation;
  size_t nth = 0;
  int error = EIO;  // or ENOSPC
  bool for_good = false;
};

// Counts operations and says which fail. Thread-safe.
class Faults {
 public:
  explicit Faults(Fault fault = {}) : fault_(std::move(fault)) {}

  bool Fails(const std::string& operation) {
    const std::lock_guard lock(mutex_);
    const bool hit = ++counts_[operation] == fault_.nth && operation == fault_.operation;
    fired_ |= hit;
    return hit || (fired_ && fault_.for_good);
  }

  const Fault& fault() const { return fault_; }
  // Whether an operation has failed.
  bool fired() const {
    const std::lock_guard lock(mutex_);
    return fired_;
  }
  // How many operations of each name there were.
  std::map<std::string, size_t> counts() const {
    const std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  const Fault fault_;
  mutable std::mutex mutex_;
  bool fired_ = false;
  std::map<std::string, size_t> counts_;
};

// Those that system calls of this thread are operations of.
inline thread_local Faults* faults_of_this_thread = nullptr;

class FaultsOfThisThread {
 public:
  explicit FaultsOfThisThread(Faults* faults) : before_(std::exchange(faults_of_this_thread, faults)) {
    system_call_hook = [](const char* call) {
      Faults* const f = faults_of_this_thread;
      return f != nullptr && f->Fails(std::string(call) + "()") ? f->fault().error : 0;
    };
  }
  ~FaultsOfThisThread() { faults_of_this_thread = before_; }
  FaultsOfThisThread(const FaultsOfThisThread&) = delete;
  FaultsOfThisThread& operator=(const FaultsOfThisThread&) = delete;

 private:
  Faults* const before_;
};

// An operation of RocksDB's: `call` does it, unless it fails.
template <class Call>
IOStatus Operation(Faults* faults, const char* name, Call call) {
  const FaultsOfThisThread none(nullptr);  // the system calls that it takes are part of it
  if (!faults->Fails(name)) return call();
  if (faults->fault().error == EIO) return IOStatus::IOError(name, "made to fail");
  IOStatus no_space = IOStatus::NoSpace(name, "made to fail");
  no_space.SetRetryable(true);  // as RocksDB's own file system has it
  return no_space;
}

template <class File>
class FaultyFile : public File {
 public:
  template <class Target>
  FaultyFile(std::unique_ptr<Target> file, Faults* faults) : File(std::move(file)), faults_(faults) {}

 protected:
  template <class Call>
  IOStatus Do(const char* name, Call call) const {
    return Operation(faults_, name, call);
  }

 private:
  Faults* const faults_;
};

class FaultySequentialFile : public FaultyFile<rocksdb::FSSequentialFileOwnerWrapper> {
 public:
  using FaultyFile::FaultyFile;

  IOStatus Read(size_t n, const IOOptions& options, Slice* result, char* scratch, IODebugContext* context) override {
    return Do("read of a sequential file",
              [&] { return FSSequentialFileOwnerWrapper::Read(n, options, result, scratch, context); });
  }
};

class FaultyRandomAccessFile : public FaultyFile<rocksdb::FSRandomAccessFileOwnerWrapper> {
 public:
  using FaultyFile::FaultyFile;

  IOStatus Read(uint64_t offset, size_t n, const IOOptions& options, Slice* result, char* scratch,
                IODebugContext* context) const override {
    return Do("read",
              [&] { return FSRandomAccessFileOwnerWrapper::Read(offset, n, options, result, scratch, context); });
  }
  // One of the reads fails.
  IOStatus MultiRead(rocksdb::FSReadRequest* requests, size_t n, const IOOptions& options,
                     IODebugContext* context) override {
    const IOStatus status = FSRandomAccessFileOwnerWrapper::MultiRead(requests, n, options, context);
    if (status.ok() && n > 0) {
      rocksdb::FSReadRequest& one = requests[n / 2];
      one.status.PermitUncheckedError();
      one.status = Do("one read of several", [&] { return std::exchange(one.status, IOStatus::OK()); });
    }
    return status;
  }
};

class FaultyWritableFile : public FaultyFile<rocksdb::FSWritableFileOwnerWrapper> {
 public:
  using FaultyFile::FaultyFile;

  // Half of the bytes are written when it fails.
  IOStatus Append(const Slice& data, const IOOptions& options, IODebugContext* context) override {
    const auto append = [&](size_t n) {
      return FSWritableFileOwnerWrapper::Append(Slice(data.data(), n), options, context);
    };
    bool failed = true;
    IOStatus status = Do("append", [&] {
      failed = false;
      return append(data.size());
    });
    if (failed) append(data.size() / 2).PermitUncheckedError();
    return status;
  }
  IOStatus Append(const Slice& data, const IOOptions& options, const rocksdb::DataVerificationInfo&,
                  IODebugContext* context) override {
    return Append(data, options, context);
  }
  IOStatus Sync(const IOOptions& options, IODebugContext* context) override {
    return Do("sync", [&] { return FSWritableFileOwnerWrapper::Sync(options, context); });
  }
  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    return Do("sync", [&] { return FSWritableFileOwnerWrapper::Fsync(options, context); });
  }
  // Closed it is in any case.
  IOStatus Close(const IOOptions& options, IODebugContext* context) override {
    IOStatus closed = FSWritableFileOwnerWrapper::Close(options, context);
    return Do("close", [&] { return std::move(closed); });
  }
};

class FaultyDirectory : public FaultyFile<rocksdb::FSDirectoryWrapper> {
 public:
  using FaultyFile::FaultyFile;

  IOStatus Fsync(const IOOptions& options, IODebugContext* context) override {
    return Do("sync of a directory", [&] { return FSDirectoryWrapper::Fsync(options, context); });
  }
  IOStatus FsyncWithDirOptions(const IOOptions& options, IODebugContext* context,
                               const rocksdb::DirFsyncOptions& how) override {
    return Do("sync of a directory", [&] { return FSDirectoryWrapper::FsyncWithDirOptions(options, context, how); });
  }
};

class FaultyFileSystem : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultyFileSystem(Faults* faults) : FileSystemWrapper(rocksdb::FileSystem::Default()), faults_(faults) {}

  const char* Name() const override { return "faulty"; }

  IOStatus NewSequentialFile(const std::string& path, const rocksdb::FileOptions& options,
                             std::unique_ptr<rocksdb::FSSequentialFile>* file, IODebugContext* context) override {
    return Open<FaultySequentialFile>("open of a sequential file", file, [&] {
      return FileSystemWrapper::NewSequentialFile(path, options, file, context);
    });
  }
  IOStatus NewRandomAccessFile(const std::string& path, const rocksdb::FileOptions& options,
                               std::unique_ptr<rocksdb::FSRandomAccessFile>* file, IODebugContext* context) override {
    return Open<FaultyRandomAccessFile>(
        "open", file, [&] { return FileSystemWrapper::NewRandomAccessFile(path, options, file, context); });
  }
  IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file, IODebugContext* context) override {
    return Open<FaultyWritableFile>("open of a new file", file,
                                    [&] { return FileSystemWrapper::NewWritableFile(path, options, file, context); });
  }
  IOStatus NewDirectory(const std::string& path, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* directory, IODebugContext* context) override {
    return Open<FaultyDirectory>("open of a directory", directory,
                                 [&] { return FileSystemWrapper::NewDirectory(path, options, directory, context); });
  }

  IOStatus GetChildren(const std::string& path, const IOOptions& options, std::vector<std::string>* children,
                       IODebugContext* context) override {
    return Do("list", [&] { return FileSystemWrapper::GetChildren(path, options, children, context); });
  }
  IOStatus GetFileSize(const std::string& path, const IOOptions& options, uint64_t* size,
                       IODebugContext* context) override {
    return Do("size", [&] { return FileSystemWrapper::GetFileSize(path, options, size, context); });
  }
  IOStatus DeleteFile(const std::string& path, const IOOptions& options, IODebugContext* context) override {
    return Do("delete", [&] { return FileSystemWrapper::DeleteFile(path, options, context); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to, const IOOptions& options,
                      IODebugContext* context) override {
    return Do("rename", [&] { return FileSystemWrapper::RenameFile(from, to, options, context); });
  }
  IOStatus LinkFile(const std::string& from, const std::string& to, const IOOptions& options,
                    IODebugContext* context) override {
    return Do("link", [&] { return FileSystemWrapper::LinkFile(from, to, options, context); });
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions& options, IODebugContext* context) override {
    return Do("make a directory", [&] { return FileSystemWrapper::CreateDirIfMissing(path, options, context); });
  }
  IOStatus LockFile(const std::string& path, const IOOptions& options, rocksdb::FileLock** lock,
                    IODebugContext* context) override {
    return Do("lock", [&] { return FileSystemWrapper::LockFile(path, options, lock, context); });
  }

 private:
  template <class Call>
  IOStatus Do(const char* name, Call call) const {
    return Operation(faults_, name, call);
  }
  template <class Faulty, class File, class Call>
  IOStatus Open(const char* name, std::unique_ptr<File>* file, Call open) const {
    IOStatus status = Do(name, open);
    if (status.ok()) *file = std::make_unique<Faulty>(std::move(*file), faults_);
    return status;
  }

  Faults* const faults_;
};

}  // namespace damo::testing
