#include "disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <random>
#include <system_error>

#include "base/status.h"
#include "base/thread_pool.h"

namespace damo::benchmarks {
namespace {

constexpr size_t kBlock = 4096;

[[noreturn]] void Fail(const std::string& what) {
  const int error = errno;
  throw Error(ErrorCode::kIo, what + ": " + std::generic_category().message(error));
}

// The blocks of several files, numbered through.
class Blocks {
 public:
  explicit Blocks(const std::vector<std::string>& files) {
    for (const std::string& path : files) {
      const int file = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
      if (file < 0) Fail("cannot open " + path + " for direct I/O");
      files_.push_back(file);
      struct stat status;
      if (::fstat(file, &status) != 0) Fail("cannot look at " + path);
      count_ += static_cast<uint64_t>(status.st_size) / kBlock;
      ends_.push_back(count_);
    }
    if (count_ == 0) throw Error(ErrorCode::kInvalidArgument, "there is no file of 4 KiB or more to read from");
  }
  ~Blocks() {
    for (const int file : files_) ::close(file);
  }
  Blocks(const Blocks&) = delete;
  Blocks& operator=(const Blocks&) = delete;

  uint64_t count() const { return count_; }

  // REQUIRES: `buffer` has kBlock bytes and is aligned to them. Thread-safe.
  void Read(uint64_t block, char* buffer) const {
    const size_t file = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), block) - ends_.begin());
    const uint64_t first = file == 0 ? 0 : ends_[file - 1];
    const ssize_t got = ::pread(files_[file], buffer, kBlock, static_cast<off_t>((block - first) * kBlock));
    if (got < 0) Fail("direct read of 4 KiB");
    if (got != kBlock) throw Error(ErrorCode::kIo, "a file became shorter while it was read");
  }

 private:
  std::vector<int> files_;
  std::vector<uint64_t> ends_;  // by file: the number of the block behind its last
  uint64_t count_ = 0;
};

}  // namespace

double RandomReadsPerSecond(const std::vector<std::string>& files, int in_flight, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Blocks blocks(files);
  ThreadPool threads(in_flight);
  std::atomic<uint64_t> reads = 0;
  const Clock::time_point start = Clock::now();
  const Clock::time_point end =
      start + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  threads.ParallelFor(static_cast<size_t>(in_flight), [&](size_t, int) {
    alignas(kBlock) char buffer[kBlock];
    // Other blocks in every run: the host of a virtual disk remembers those that were read.
    std::mt19937_64 random(std::random_device{}());
    std::uniform_int_distribution<uint64_t> any(0, blocks.count() - 1);
    uint64_t mine = 0;
    for (; Clock::now() < end; ++mine) blocks.Read(any(random), buffer);
    reads += mine;
  });
  return static_cast<double>(reads) / std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace damo::benchmarks
