#include "storage_rocksdb/rocksdb_compact_keys.h"

#include <rocksdb/db.h>
#include <rocksdb/metadata.h>
#include <rocksdb/options.h>
#include <rocksdb/slice.h>
#include <rocksdb/utilities/debug.h>

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include "storage_rocksdb/rocksdb_status.h"

namespace damo {
namespace {

// The largest keys of the files of the last level that has any, ascending.
std::vector<std::string> EndsOfLastLevel(rocksdb::DB* db) {
  std::vector<rocksdb::LiveFileMetaData> files;
  db->GetLiveFilesMetaData(&files);
  int last = 0;
  for (const auto& file : files) last = std::max(last, file.level);
  std::vector<std::string> ends;
  for (const auto& file : files) {
    if (file.level == last) ends.push_back(file.largestkey);
  }
  std::sort(ends.begin(), ends.end());
  return ends;
}

}  // namespace

void CompactKeys(rocksdb::DB* db, std::span<const Key> keys) {
  rocksdb::CompactRangeOptions options;
  options.exclusive_manual_compaction = false;
  options.bottommost_level_compaction = rocksdb::BottommostLevelCompaction::kForce;
  const std::vector<std::string> ends = EndsOfLastLevel(db);
  // A compaction for the keys that one file of the last level has: none is rewritten once for each of its keys.
  for (size_t first = 0; first < keys.size();) {
    const auto end = std::lower_bound(ends.begin(), ends.end(), keys[first].view());
    size_t next = keys.size();
    if (end != ends.end()) {
      const auto above = std::upper_bound(keys.begin(), keys.end(), std::string_view(*end),
                                          [](std::string_view key, const Key& other) { return key < other.view(); });
      next = static_cast<size_t>(above - keys.begin());
    }
    const rocksdb::Slice begin_slice(keys[first].view()), end_slice(keys[next - 1].view());
    Check(db->CompactRange(options, &begin_slice, &end_slice), "compaction of deleted rows");
    first = next;
  }
}

std::vector<Key> KeysWithValues(rocksdb::DB* db, std::span<const Key> keys) {
  std::vector<Key> found;
  for (const Key& key : keys) {
    std::vector<rocksdb::KeyVersion> versions;
    const rocksdb::Slice slice(key.view());
    CheckRead(rocksdb::GetAllKeyVersions(db, slice, slice, std::numeric_limits<size_t>::max(), &versions),
              "search for deleted rows");
    if (std::any_of(versions.begin(), versions.end(), [](const auto& version) { return !version.value.empty(); })) {
      found.push_back(key);
    }
  }
  return found;
}

}  // namespace damo
