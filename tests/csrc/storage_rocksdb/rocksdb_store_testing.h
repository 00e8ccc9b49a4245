// What the tests of RocksDbStore share: short ways to open one and to look at its files.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "storage/row_store_testing.h"
#include "storage_rocksdb/rocksdb_store.h"

namespace damo::testing {

inline constexpr size_t kSize = 88;
inline constexpr size_t kMiB = size_t{1} << 20;

inline RocksDbOptions Options(const std::string& path) {
  RocksDbOptions options;
  options.path = path;
  options.memory_bytes = 16 * kMiB;
  return options;
}

inline std::unique_ptr<RowStore> Create(const std::string& path) {
  RocksDbOptions options = Options(path);
  options.create = true;
  return OpenRocksDbStore(options);
}

inline std::unique_ptr<RowStore> Open(const std::string& path) { return OpenRocksDbStore(Options(path)); }

inline std::unique_ptr<RowStore> OpenReadOnly(const std::string& path) {
  RocksDbOptions options = Options(path);
  options.read_only = true;
  return OpenRocksDbStore(options);
}

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Every file with its bytes.
inline std::map<std::string, std::string> Contents(const std::string& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    contents[file.path().filename().string()] = ReadFile(file.path());
  }
  return contents;
}

inline std::vector<std::filesystem::path> TableFiles(const std::string& directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    if (file.path().extension() == ".sst") files.push_back(file.path());
  }
  return files;
}

inline struct stat StatOf(const std::filesystem::path& path) {
  struct stat result;
  EXPECT_EQ(::stat(path.c_str(), &result), 0) << path;
  return result;
}

inline Table SomeRows(int64_t n, uint32_t table = 1) {
  Table rows;
  for (int64_t id = 0; id < n; ++id) rows[id] = Payload(kSize, table, id);
  return rows;
}

inline std::vector<int64_t> IdsOf(const Table& rows) {
  std::vector<int64_t> ids;
  for (const auto& [id, payload] : rows) ids.push_back(id);
  return ids;
}

// A checkpoint of a store with these rows of table 1.
inline void MakeCheckpoint(const TemporaryDirectory& directory, const Table& rows, const std::string& path) {
  const std::unique_ptr<RowStore> store = Create(directory / "made");
  Write(store.get(), 1, Changes(rows.begin(), rows.end()));
  store->Checkpoint(path, /*link=*/false);
  store->Close();
  std::filesystem::remove_all(directory / "made");
}

}  // namespace damo::testing
