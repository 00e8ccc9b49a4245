#include "storage_rocksdb/rocksdb_async_reads.h"

#include <fcntl.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#endif

#include <algorithm>
#include <array>
#include <utility>

namespace damo {
namespace {

using rocksdb::FSReadRequest;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

#ifdef __linux__

// RocksDB looks up so many keys at a time.
constexpr size_t kMostReads = 32;

// A thread's context for asynchronous I/O (io_setup(2) and its kin). glibc has no names for these calls, and libaio
// adds nothing to them.
class Context {
 public:
  Context() {
    if (syscall(SYS_io_setup, kMostReads, &context_) != 0) context_ = 0;
  }
  ~Context() {
    if (context_ != 0) syscall(SYS_io_destroy, context_);
  }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  bool available() const { return context_ != 0; }

  // Begins as many of `n` reads as the system takes; returns their number. REQUIRES: none is under way.
  size_t Begin(iocb** reads, size_t n) const {
    const long begun = syscall(SYS_io_submit, context_, n, reads);
    return begun < 0 ? 0 : static_cast<size_t>(begun);
  }
  // Waits for the `n` reads under way and returns their results. A signal may interrupt the wait, not the reads.
  size_t Await(io_event* events, size_t n) const {
    size_t done = 0;
    while (done < n) {
      const long some = syscall(SYS_io_getevents, context_, n - done, n - done, events + done, nullptr);
      if (some > 0) done += static_cast<size_t>(some);
    }
    return done;
  }

 private:
  aio_context_t context_ = 0;
};

const Context& ContextOfThread() {
  static thread_local const Context context;
  return context;
}

class AsyncFile : public rocksdb::FSRandomAccessFileOwnerWrapper {
 public:
  AsyncFile(std::unique_ptr<rocksdb::FSRandomAccessFile> file, int descriptor)
      : FSRandomAccessFileOwnerWrapper(std::move(file)), descriptor_(descriptor) {}
  ~AsyncFile() override { close(descriptor_); }

  IOStatus MultiRead(FSReadRequest* requests, size_t n, const IOOptions& options, IODebugContext* debug) override {
    for (size_t begin = 0; begin < n; begin += kMostReads) {
      ReadTogether(requests + begin, std::min(kMostReads, n - begin), options, debug);
    }
    return IOStatus::OK();
  }

 private:
  void ReadTogether(FSReadRequest* requests, size_t n, const IOOptions& options, IODebugContext* debug) const {
    std::array<iocb, kMostReads> reads{};
    std::array<iocb*, kMostReads> pointers;
    for (size_t i = 0; i < n; ++i) {
      reads[i].aio_data = i;
      reads[i].aio_lio_opcode = IOCB_CMD_PREAD;
      reads[i].aio_fildes = static_cast<uint32_t>(descriptor_);
      reads[i].aio_buf = reinterpret_cast<uint64_t>(requests[i].scratch);
      reads[i].aio_nbytes = requests[i].len;
      reads[i].aio_offset = static_cast<int64_t>(requests[i].offset);
      pointers[i] = &reads[i];
    }
    const Context& context = ContextOfThread();
    const size_t begun = n > 1 && context.available() ? context.Begin(pointers.data(), n) : 0;
    std::array<io_event, kMostReads> events;
    context.Await(events.data(), begun);
    std::array<bool, kMostReads> whole{};
    for (size_t e = 0; e < begun; ++e) {
      FSReadRequest& request = requests[events[e].data];
      if (events[e].res != static_cast<int64_t>(request.len)) continue;
      request.result = Slice(request.scratch, request.len);
      request.status = IOStatus::OK();
      whole[events[e].data] = true;
    }
    // What was not begun, came short or failed: RocksDB's own read knows the end of a file from an error, and names it.
    for (size_t i = 0; i < n; ++i) {
      FSReadRequest& r = requests[i];
      if (!whole[i]) r.status = Read(r.offset, r.len, options, &r.result, r.scratch, debug);
    }
  }

  const int descriptor_;
};

#endif

}  // namespace

std::unique_ptr<rocksdb::FSRandomAccessFile> WithAsyncReads(std::unique_ptr<rocksdb::FSRandomAccessFile> file,
                                                            const std::string& path) {
#ifdef __linux__
  const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (descriptor >= 0) return std::make_unique<AsyncFile>(std::move(file), descriptor);
#endif
  return file;
}

bool HasAsyncReads() {
#ifdef __linux__
  return ContextOfThread().available();
#else
  return false;
#endif
}

}  // namespace damo
