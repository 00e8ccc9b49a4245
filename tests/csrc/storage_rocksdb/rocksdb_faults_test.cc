// Whatever file operation fails, a training run gets an error or goes on as if nothing had been: no crash, no row that
// silently is an older one, and checkpoints that stay what they were.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/store_testing.h"
#include "storage_rocksdb/rocksdb_file_system.h"
#include "storage_rocksdb/rocksdb_store.h"
#include "testing/faulty_file_system.h"

namespace damo {
namespace {

using testing::BatchOf;
using testing::Fault;
using testing::Faults;
using testing::Forward;
using testing::GetRows;
using testing::OneFeature;
using testing::OpenStore;
using testing::Range;
using testing::TemporaryDirectory;

constexpr int kDim = 256;
constexpr int64_t kIds = 750;
constexpr size_t kSteps = 12;
constexpr size_t kIdsPerStep = 220;

TableSchema Schema() {
  TableSchema schema = testing::PlainTable("t", 7, kDim);
  schema.initializer = {Distribution::kUniform, 1, -0.1f, 0.1f, 0, 1};
  schema.optimizer.kind = OptimizerKind::kAdam;
  schema.optimizer.lr = 0.1;
  return schema;
}

// The n-th update, of rows that are read ahead first.
void Update(Store* store, size_t n) {
  std::mt19937_64 random(n);
  std::vector<int64_t> ids(kIdsPerStep);
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % kIds);
  const testing::Batch batch = BatchOf(ids);
  const std::unique_ptr<Lookup> lookup = batch.lookup(OneFeature(0));
  store->Prefetch(lookup.get());
  Forward(store, lookup.get(), kDim);
  const std::vector<float> grads(kIdsPerStep * kDim, static_cast<float>(n % 3) - 1.5f);
  const GradientPart part{lookup.get(), grads.data(), kDim};
  store->Backward({&part, 1}, 1, NonFinite::kRaise);
}

// What a table is after so many updates.
struct Rows {
  testing::Table payloads;
  std::vector<float> weights;  // of ids 0 to kIds
};

// By the number of updates.
const std::vector<Rows>& Undisturbed() {
  static const std::vector<Rows> all = [] {
    const std::unique_ptr<Store> store = OpenStore();
    store->OpenTable(Schema());
    std::vector<Rows> rows;
    for (size_t n = 0; n <= kSteps; ++n) {
      if (n > 0) Update(store.get(), n);
      rows.push_back({testing::Contents(store.get(), 0), GetRows(store.get(), 0, Range(0, kIds))});
    }
    return rows;
  }();
  return all;
}

// A training run with checkpoints over a RocksDB of which operations fail.
class Run {
 public:
  explicit Run(Faults* faults) : faults_(faults) {}

  // Whether it came to its end. A call that fails is made once more. If that fails, too, training goes on from the
  // newest checkpoint.
  bool Train() {
    const testing::FaultsOfThisThread faults(faults_);
    for (int tries = 0; tries < 3; ++tries) {
      const bool done = Succeeds([&] {
        Open();
        while (updates_ < kSteps) {
          Persist([&] { Update(store_.get(), updates_ + 1); });
          ++updates_;
          if (updates_ % 6 == 2) Persist([&] { store_->Flush(); });
          if (updates_ % 6 == 0) Persist([&] { Checkpoint(); });
          if (updates_ % 6 == 4) Persist([&] { CheckRows(); });
        }
        Open();
        CheckRows();
      });
      store_.reset();
      if (done) return true;
    }
    return false;
  }

  // Every checkpoint that was made holds the rows as they were then.
  void CheckCheckpoints() const {
    for (const auto& [path, updates] : checkpoints_) {
      RocksDbOptions options;
      options.path = path;
      options.read_only = true;
      const std::unique_ptr<RowStore> rows = OpenRocksDbStore(options);
      const testing::Table found = testing::ScanAll(rows.get(), Schema().number, Schema().layout().payload_size());
      EXPECT_TRUE(found == Undisturbed()[updates].payloads) << "the checkpoint of " << updates << " updates";
    }
  }

  size_t checkpoints() const { return checkpoints_.size(); }

 private:
  struct Made {
    std::string path;
    size_t updates;
  };

  // Opens a store with the rows of the newest checkpoint, or a new one.
  void Open() {
    store_.reset();
    updates_ = checkpoints_.empty() ? 0 : checkpoints_.back().updates;
    RocksDbOptions rocksdb;
    rocksdb.path = NewPath("live");
    rocksdb.create = checkpoints_.empty();
    rocksdb.memory_bytes = size_t{8} << 20;
    rocksdb.env = env_.get();
    if (!checkpoints_.empty()) LinkOrCopyRocksDb(checkpoints_.back().path, rocksdb.path);
    StoreOptions options;
    options.cache_bytes = size_t{768} << 10;
    store_ = OpenStore(options, testing::kTightCache, OpenRocksDbStore(rocksdb));
    TableSchema schema = Schema();
    schema.iter = static_cast<uint32_t>(updates_);
    schema.rows = static_cast<int64_t>(Undisturbed()[updates_].payloads.size());
    store_->OpenTable(schema);
  }

  void Checkpoint() {
    const std::string path = NewPath("checkpoint");
    try {
      store_->Checkpoint(path, /*link=*/true);
    } catch (...) {
      EXPECT_FALSE(std::filesystem::exists(path)) << "a part of a checkpoint was left";
      throw;
    }
    checkpoints_.push_back({path, updates_});
  }

  void CheckRows() {
    EXPECT_TRUE(GetRows(store_.get(), 0, Range(0, kIds)) == Undisturbed()[updates_].weights)
        << "rows in memory after " << updates_ << " updates";
  }

  template <class Call>
  void Persist(Call call) {
    if (Succeeds(call)) return;
    // Twice: the first may get the error of an eviction that came before it.
    for (int i = 0; i < 2; ++i) Succeeds([&] { CheckRows(); });
    call();
  }

  // Whether `call` throws nothing, which without a fault it must not.
  template <class Call>
  bool Succeeds(Call call) {
    try {
      call();
      return true;
    } catch (const Error& error) {
      EXPECT_TRUE(faults_->fired()) << error.what();
      const bool io = error.code() == ErrorCode::kIo, no_space = error.code() == ErrorCode::kOutOfSpace;
      // RocksDB has words of its own for what keeps it from opening.
      const bool opening = store_ == nullptr && (io || error.code() == ErrorCode::kCorruption);
      EXPECT_TRUE(opening || (faults_->fault().error == EIO ? io : no_space)) << error.what();
      return false;
    }
  }

  std::string NewPath(const std::string& name) { return directory_ / (name + std::to_string(++paths_)); }

  Faults* const faults_;
  const TemporaryDirectory directory_;
  const std::unique_ptr<rocksdb::Env> env_ = NewFileSystemEnv(std::make_shared<testing::FaultyFileSystem>(faults_));
  std::vector<Made> checkpoints_;
  std::unique_ptr<Store> store_;
  size_t updates_ = 0;
  int paths_ = 0;
};

// How many operations of each name an undisturbed run has. Threads make it vary a little from run to run.
const std::map<std::string, size_t>& Operations() {
  static const std::map<std::string, size_t> operations = [] {
    Faults none;
    Run run(&none);
    EXPECT_TRUE(run.Train());
    EXPECT_EQ(run.checkpoints(), kSteps / 6);
    run.CheckCheckpoints();
    return none.counts();
  }();
  return operations;
}

// At most so many of each name, evenly from the first to the last.
void AddFaults(size_t of_each, int error, bool for_good, std::vector<Fault>* faults) {
  for (const auto& [name, n] : Operations()) {
    const size_t some = std::min(of_each, n);
    for (size_t i = 0; i < some; ++i) {
      faults->push_back({name, 1 + (some > 1 ? i * (n - 1) / (some - 1) : 0), error, for_good});
    }
  }
}

std::string Describe(const Fault& fault) {
  return std::string(fault.for_good ? "from " : "") + fault.operation + " " + std::to_string(fault.nth) +
         " on: errno " + std::to_string(fault.error);
}

void RunWith(Faults* faults) {
  SCOPED_TRACE(Describe(faults->fault()));
  try {
    Run run(faults);
    const bool finished = run.Train();
    EXPECT_TRUE(finished || faults->fault().for_good) << "training cannot go on";
    run.CheckCheckpoints();
  } catch (const std::exception& error) {
    ADD_FAILURE() << error.what();
  }
}

TEST(RocksDbFaultsTest, WhateverFailsNothingIsLost) {
  // How many places for each kind of operation: with DAMO_EVERY_FAULT=1 in the environment, every place.
  const bool every = std::getenv("DAMO_EVERY_FAULT") != nullptr;
  const auto places = [&](size_t n) { return every ? SIZE_MAX : n; };
  std::vector<Fault> all;
  AddFaults(places(2), ENOSPC, /*for_good=*/true, &all);
  AddFaults(places(3), ENOSPC, /*for_good=*/false, &all);
  AddFaults(places(3), EIO, /*for_good=*/true, &all);
  AddFaults(places(10), EIO, /*for_good=*/false, &all);

  // Many at a time: where a disk is full, or RocksDB has had an error, most of a run is waiting. That takes threads of
  // RocksDB's, too, which it has one of for flushes and one for compactions otherwise.
  constexpr int kThreads = 32;
  FileSystemEnv()->SetBackgroundThreads(kThreads, rocksdb::Env::LOW);
  FileSystemEnv()->SetBackgroundThreads(kThreads, rocksdb::Env::HIGH);
  std::atomic<size_t> next = 0;
  std::mutex mutex;
  std::map<std::string, size_t> fired;  // by operation
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next++) < all.size();) {
        Faults faults(all[i]);
        RunWith(&faults);
        const std::lock_guard lock(mutex);
        fired[all[i].operation] += faults.fired() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& [name, n] : Operations()) EXPECT_GT(fired[name], 0u) << "no " << name << " has failed";
}

}  // namespace
}  // namespace damo
