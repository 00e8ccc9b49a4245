#include "storage_rocksdb/rocksdb_async_reads.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <rocksdb/file_system.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/files.h"
#include "storage_rocksdb/rocksdb_store_testing.h"

namespace damo {
namespace {

using namespace testing;
using rocksdb::FSReadRequest;
using rocksdb::IOOptions;

constexpr size_t kBlock = 4096;

std::string RandomBytes(size_t n) {
  std::mt19937 random(1);
  std::string bytes(n, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

std::unique_ptr<rocksdb::FSRandomAccessFile> Open(const std::string& path) {
  rocksdb::FileOptions options;
  options.use_direct_reads = true;
  std::unique_ptr<rocksdb::FSRandomAccessFile> file;
  EXPECT_TRUE(rocksdb::FileSystem::Default()->NewRandomAccessFile(path, options, &file, nullptr).ok());
  return file == nullptr ? nullptr : WithAsyncReads(std::move(file), path);
}

// Requests of one block each, with the memory that direct reads need.
class Requests {
 public:
  explicit Requests(const std::vector<size_t>& blocks)
      : memory_(static_cast<char*>(std::aligned_alloc(kBlock, blocks.size() * kBlock)), &std::free) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      FSReadRequest request;
      request.offset = blocks[i] * kBlock;
      request.len = kBlock;
      request.scratch = memory_.get() + i * kBlock;
      requests_.push_back(std::move(request));
    }
  }
  FSReadRequest* data() { return requests_.data(); }
  size_t size() const { return requests_.size(); }
  const FSReadRequest& operator[](size_t i) const { return requests_[i]; }

 private:
  std::unique_ptr<char, decltype(&std::free)> memory_;
  std::vector<FSReadRequest> requests_;
};

void ExpectBlocks(rocksdb::FSRandomAccessFile* file, const std::vector<size_t>& blocks, const std::string& bytes) {
  Requests requests(blocks);
  ASSERT_TRUE(file->MultiRead(requests.data(), requests.size(), IOOptions(), nullptr).ok());
  for (size_t i = 0; i < blocks.size(); ++i) {
    ASSERT_TRUE(requests[i].status.ok()) << requests[i].status.ToString();
    EXPECT_EQ(requests[i].result.ToString(), bytes.substr(blocks[i] * kBlock, kBlock)) << "block " << blocks[i];
  }
}

class AsyncReadsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteFile(path_, bytes_);
    const int descriptor = open(path_.c_str(), O_RDONLY | O_DIRECT);
    if (descriptor < 0) GTEST_SKIP() << "no direct I/O in " << path_;
    close(descriptor);
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_ / "file";
  const std::string bytes_ = RandomBytes(100 * kBlock + 100);
};

TEST_F(AsyncReadsTest, EveryRequestGetsItsBytes) {
  const auto file = Open(path_);
  ExpectBlocks(file.get(), {7}, bytes_);
  ExpectBlocks(file.get(), {99, 0, 3, 50}, bytes_);
}

TEST_F(AsyncReadsTest, MoreRequestsThanGoOutAtATime) {
  std::vector<size_t> blocks(100);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = (37 * i) % blocks.size();
  ExpectBlocks(Open(path_).get(), blocks, bytes_);
}

TEST_F(AsyncReadsTest, TheEndOfTheFileComesShort) { ExpectBlocks(Open(path_).get(), {99, 100}, bytes_); }

TEST_F(AsyncReadsTest, AnErrorIsItsRequestsAlone) {
  Requests requests({1, 2, 3});
  char* const scratch = requests.data()[1].scratch;
  requests.data()[1].scratch = nullptr;  // EFAULT
  const auto file = Open(path_);
  ASSERT_TRUE(file->MultiRead(requests.data(), requests.size(), IOOptions(), nullptr).ok());
  requests.data()[1].scratch = scratch;
  EXPECT_FALSE(requests[1].status.ok());
  for (const size_t i : {0, 2}) {
    ASSERT_TRUE(requests[i].status.ok());
    EXPECT_EQ(requests[i].result.ToString(), bytes_.substr(requests[i].offset, kBlock));
  }
}

TEST_F(AsyncReadsTest, ThreadsReadOneFile) {
  const auto file = Open(path_);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 50; ++i) ExpectBlocks(file.get(), {t, (t + i) % 100, 99 - t}, bytes_);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace damo
