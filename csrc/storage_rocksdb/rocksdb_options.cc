#include "storage_rocksdb/rocksdb_options.h"

#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/merge_operator.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/version.h>
#include <rocksdb/write_buffer_manager.h>
#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cstdarg>
#include <exception>
#include <limits>
#include <memory>

#include "base/thread_pool.h"
#include "storage_rocksdb/rocksdb_changes.h"
#include "storage_rocksdb/rocksdb_dead_records.h"
#include "storage_rocksdb/rocksdb_file_system.h"

namespace damo {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Two full write buffers, and one that is begun, take a quarter of the memory and a little more.
size_t WriteBufferBytes(size_t memory_bytes) { return std::clamp(memory_bytes / 8, kMiB, 64 * kMiB); }

// Rows that are read often live in the cache above, so this one is for index and filter blocks first. Few shards:
// memory is charged to a shard in pieces of 256 KiB, which must stay small beside it.
std::shared_ptr<rocksdb::Cache> MakeCache(size_t memory_bytes) {
  const size_t shards = std::clamp<size_t>(memory_bytes / (16 * kMiB), 1, 64);
  const int shard_bits = std::countr_zero(std::bit_floor(shards));
  return rocksdb::NewLRUCache(memory_bytes, shard_bits, /*strict_capacity_limit=*/false, /*high_pri_pool_ratio=*/0.8);
}

rocksdb::BlockBasedTableOptions MakeTableOptions(std::shared_ptr<rocksdb::Cache> cache) {
  rocksdb::BlockBasedTableOptions table;
  table.format_version = 5;  // the newest that RocksDB 7.8 reads

  table.block_cache = std::move(cache);
  table.cache_index_and_filter_blocks = true;
  table.cache_index_and_filter_blocks_with_high_priority = true;
  table.cache_usage_options.options_overrides[rocksdb::CacheEntryRole::kBlockBasedTableReader] = {
      rocksdb::CacheEntryRoleOptions::Decision::kEnabled};

  table.index_type = rocksdb::BlockBasedTableOptions::kTwoLevelIndexSearch;
  table.index_block_restart_interval = 8;  // half the index of the default
  table.partition_filters = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));

  table.block_size = kBlockBytes;
  table.block_align = true;  // one page, one disk sector, per block
  table.data_block_index_type = rocksdb::BlockBasedTableOptions::kDataBlockBinaryAndHash;
  return table;
}

// Tables stay open, unless the process may open too few files for a large store: then half of those it may. A file for
// direct reads is opened twice.
int MaxOpenFiles(bool direct_io) {
  rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= 16384) return -1;
  return static_cast<int>(limit.rlim_cur / (direct_io ? 4 : 2));
}

// How many threads open a database's table files. RocksDB ends the process if it cannot start one of several: where the
// system has no memory for them, or no more threads, the caller does it alone.
int FileOpeningThreads() {
  constexpr int kThreads = 16;
  try {
    const ThreadPool trial(kThreads);
    return kThreads;
  } catch (const std::exception&) {
    return 1;
  }
}

// RocksDB's log file would be one more thing to write to, also into a store that is only read, and builds of it with
// assertions abort when it does not fit the disk. What matters comes back as an error.
class NoLog : public rocksdb::Logger {
 public:
  using rocksdb::Logger::Logv;
  void Logv(const char*, va_list) override {}
};

// Nobody writes records to be merged: those of a forged database are refused. Where there is a merge operator RocksDB
// does without its mode for compacted databases that are only read, which such a record ends the process in.
class NoMerges : public rocksdb::MergeOperator {
 public:
  bool FullMergeV2(const MergeOperationInput&, MergeOperationOutput*) const override { return false; }
  const char* Name() const override { return "damo.NoMerges"; }
};

}  // namespace

size_t ReadaheadBytes(size_t memory_bytes) { return std::clamp(memory_bytes / 64, kMiB / 8, 2 * kMiB); }

std::string RocksDbVersion() { return rocksdb::GetRocksVersionAsString(); }

rocksdb::Options MakeOptions(const RocksDbOptions& options) {
  rocksdb::Options o;
  o.env = options.env != nullptr ? options.env : FileSystemEnv(options.table_files);
  o.create_if_missing = o.error_if_exists = options.create;
  o.paranoid_checks = true;
  o.max_open_files = MaxOpenFiles(options.direct_io);
  o.max_file_opening_threads = FileOpeningThreads();
  o.skip_stats_update_on_db_open = true;
  o.wal_recovery_mode = rocksdb::WALRecoveryMode::kAbsoluteConsistency;  // of a checkpoint's journal
  o.avoid_flush_during_shutdown = true;                                  // durability comes from checkpoints
  o.max_background_jobs = std::clamp(options.num_threads, 2, 4);  // of which one flush, on which RocksDbStore relies
  o.use_direct_reads = options.direct_io;
  o.use_direct_io_for_flush_and_compaction = options.direct_io;
  o.compaction_readahead_size = ReadaheadBytes(options.memory_bytes);

  o.stats_dump_period_sec = 0;
  o.stats_persist_period_sec = 0;
  o.info_log = std::make_shared<NoLog>();
  o.info_log_level = rocksdb::FATAL_LEVEL;

  const std::shared_ptr<rocksdb::Cache> cache = MakeCache(options.memory_bytes);
  o.table_factory.reset(rocksdb::NewBlockBasedTableFactory(MakeTableOptions(cache)));
  o.write_buffer_manager = std::make_shared<rocksdb::WriteBufferManager>(0, cache);  // charges, does not limit
  o.write_buffer_size = WriteBufferBytes(options.memory_bytes);
  o.max_write_buffer_number = 4;  // the store has writes wait when two are full
  // Most rows asked for are not in a memtable: a filter of 2 % of its size says so faster than its skip list.
  o.memtable_whole_key_filtering = true;
  o.memtable_prefix_bloom_size_ratio = 0.02;

  // Nearly all rows are in the last level. Filters for it would take more memory than the index, for new ids alone.
  o.optimize_filters_for_hits = true;

  if (options.read_only) o.merge_operator = std::make_shared<NoMerges>();
  o.table_properties_collector_factories.push_back(StepsCollectorFactory());
  o.table_properties_collector_factories.push_back(SampleCollectorFactory());

  o.compression = rocksdb::kNoCompression;  // floats do not compress
  o.compaction_style = rocksdb::kCompactionStyleLevel;
  o.level_compaction_dynamic_level_bytes = true;
  // The first level that is sorted as a whole is about as large as what is merged into it, and files grow with their
  // level: few files in a large store, little rewritten in a small one.
  o.max_bytes_for_level_base = 8 * o.write_buffer_size;
  o.target_file_size_base = std::clamp(4 * o.write_buffer_size, 8 * kMiB, 64 * kMiB);
  o.target_file_size_multiplier = 2;
  o.periodic_compaction_seconds = 0;  // with a compaction filter it would be a month: a RocksDbReclaimer knows better
  // Writes slow down while compactions fall behind, but never wait for one: it may itself be waiting for space.
  o.level0_stop_writes_trigger = std::numeric_limits<int>::max();
  o.hard_pending_compaction_bytes_limit = 0;
  return o;
}

}  // namespace damo
