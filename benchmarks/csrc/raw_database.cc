#include "raw_database.h"

#include <rocksdb/convenience.h>
#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/version.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>

#include "base/status.h"
#include "engine/budget.h"
#include "row/record.h"
#include "storage_rocksdb/rocksdb_options.h"
#include "storage_rocksdb/rocksdb_status.h"

namespace damo::benchmarks {
namespace {

using rocksdb::Slice;

// As in rocksdb_store.cc and write_back.cc.
constexpr size_t kKeysPerRead = 128;
constexpr size_t kBytesPerWrite = size_t{2} << 20;

size_t ReadSome(rocksdb::DB* db, std::span<const Key> keys) {
  std::array<Slice, kKeysPerRead> slices;
  std::array<rocksdb::PinnableSlice, kKeysPerRead> values;
  std::array<rocksdb::Status, kKeysPerRead> statuses;
  for (size_t i = 0; i < keys.size(); ++i) slices[i] = keys[i].view();
  db->MultiGet(rocksdb::ReadOptions(), db->DefaultColumnFamily(), keys.size(), slices.data(), values.data(),
               statuses.data(), /*sorted_input=*/true);
  size_t found = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (statuses[i].IsNotFound()) continue;
    Check(statuses[i], "MultiGet");
    ++found;
  }
  return found;
}

}  // namespace

std::vector<Key> ReadKeys(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (file.fail()) throw Error(ErrorCode::kIo, "cannot read " + path);
  constexpr size_t kPair = 2 * sizeof(int64_t);
  if (bytes.empty() || bytes.size() % kPair != 0) {
    throw Error(ErrorCode::kInvalidArgument, path + " must hold pairs of int64, table number and id, but has " +
                                                 std::to_string(bytes.size()) + " bytes");
  }
  std::vector<Key> keys(bytes.size() / kPair);
  for (size_t i = 0; i < keys.size(); ++i) {
    int64_t pair[2];
    std::memcpy(pair, bytes.data() + i * kPair, kPair);
    if (pair[0] < 0 || pair[0] > std::numeric_limits<uint32_t>::max()) {
      throw Error(ErrorCode::kInvalidArgument, path + ": " + std::to_string(pair[0]) + " is not a table number");
    }
    CheckTableNumber(static_cast<uint32_t>(pair[0]));
    keys[i] = EncodeKey(static_cast<uint32_t>(pair[0]), pair[1]);
  }
  return keys;
}

RawDatabase::RawDatabase(const RawDatabaseOptions& options) {
  const rocksdb::Options db_options = MakeOptions({
      .path = options.path,
      .read_only = options.read_only,
      .memory_bytes = DivideBudget(options.memory_budget).row_store,
      .direct_io = options.direct_io,
  });
#if ROCKSDB_MAJOR >= 11
  std::unique_ptr<rocksdb::DB> db;
#else
  rocksdb::DB* db = nullptr;
#endif
  Check(options.read_only ? rocksdb::DB::OpenForReadOnly(db_options, options.path, &db)
                          : rocksdb::DB::Open(db_options, options.path, &db),
        "cannot open " + options.path);
  db_ = std::unique_ptr<rocksdb::DB>(std::move(db));
}

// Without waiting for the compactions that are due.
RawDatabase::~RawDatabase() { rocksdb::CancelAllBackgroundWork(db_.get(), /*wait=*/true); }

size_t RawDatabase::Read(std::span<const Key> keys, ThreadPool* threads) const {
  // Several chunks a thread, so that all end at about the same time.
  const size_t chunk = std::clamp<size_t>(keys.size() / (4 * threads->threads()), 1, kKeysPerRead);
  std::atomic<size_t> found = 0;
  threads->ParallelFor((keys.size() + chunk - 1) / chunk, [&](size_t c, int) {
    found += ReadSome(db_.get(), keys.subspan(c * chunk, std::min(chunk, keys.size() - c * chunk)));
  });
  return found;
}

void RawDatabase::Write(std::span<Key> keys, size_t payload_bytes) {
  std::string payload(payload_bytes, 'x');
  const Slice value[] = {Slice(&kRecordVersion, 1), payload};
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  const size_t rows = std::max<size_t>(1, kBytesPerWrite / payload_bytes);
  for (size_t begin = 0; begin < keys.size(); begin += rows) {
    const std::span<Key> part = keys.subspan(begin, std::min(rows, keys.size() - begin));
    std::sort(part.begin(), part.end());
    rocksdb::WriteBatch batch(part.size() * (payload_bytes + 2 * kKeySize));
    for (const Key& key : part) {
      const Slice key_slice = key.view();
      Check(batch.Put(rocksdb::SliceParts(&key_slice, 1), rocksdb::SliceParts(value, 2)), "WriteBatch");
    }
    Check(db_->Write(options, &batch), "Write");
  }
}

void RawDatabase::Flush() { Check(db_->Flush(rocksdb::FlushOptions()), "Flush"); }

}  // namespace damo::benchmarks
