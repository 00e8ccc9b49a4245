// What the tests of row stores share: a scratch directory, short ways to write and read rows, and errors as values.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "storage/row_store.h"

namespace damo::testing {

// A directory that is removed with what is in it.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& parent = std::filesystem::temp_directory_path()) {
    path_ = parent + "/row_store_test_XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make " + path_);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// One table's rows; a mapped nullopt deletes.
using Table = std::map<int64_t, std::string>;
using Changes = std::map<int64_t, std::optional<std::string>>;

// They last as long as `changes` do.
inline std::vector<RowWrite> WritesOf(uint32_t table, const Changes& changes, uint64_t step = 0) {
  std::vector<RowWrite> rows;
  for (const auto& [id, payload] : changes) {
    rows.push_back({table, id, payload ? payload->data() : nullptr, payload ? payload->size() : 0, step});
  }
  return rows;
}

inline void Write(RowStore* store, uint32_t table, const Changes& changes, uint64_t step = 0) {
  store->Write(WritesOf(table, changes, step));
}

// The rows that are there. `ids` must ascend.
inline Table Get(RowStore* store, uint32_t table, const std::vector<int64_t>& ids, size_t payload_size) {
  std::vector<std::string> rows(ids.size(), std::string(payload_size, '?'));
  std::vector<char*> dst;
  for (std::string& row : rows) dst.push_back(row.data());
  std::vector<uint8_t> found(ids.size(), 7);
  store->MultiGet(table, ids, payload_size, dst.data(), found.data());
  Table result;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (found[i] == 1) {
      result[ids[i]] = rows[i];
    } else {
      EXPECT_EQ(found[i], 0);
      EXPECT_EQ(rows[i], std::string(payload_size, '?')) << "a row that was not found was written to";
    }
  }
  return result;
}

// Every row, checking that ids ascend.
inline Table ReadAll(RowIterator* rows, size_t payload_size) {
  Table result;
  int64_t id;
  const char* payload;
  while (rows->Next(&id, &payload)) {
    EXPECT_TRUE(result.empty() || result.rbegin()->first < id);
    result.emplace_hint(result.end(), id, std::string(payload, payload_size));
  }
  return result;
}

inline Table ScanAll(RowStore* store, uint32_t table, size_t payload_size) {
  return ReadAll(store->Scan(table, payload_size).get(), payload_size);
}

// A row's payload that no other (table, id, version) has.
inline std::string Payload(size_t size, uint32_t table, int64_t id, uint64_t version = 0) {
  std::string payload;
  uint64_t x = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15 + table * 0xd1342543de82ef95 + version + 1;
  while (payload.size() < size) {
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    payload.append(reinterpret_cast<const char*>(&x), sizeof(x));
  }
  payload.resize(size);
  return payload;
}

// The error that `call` throws, as code and message.
inline std::optional<Error> ErrorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

// Expects `call` to throw this code with a message that has every one of `parts` in it.
inline void ExpectError(ErrorCode code, const std::vector<std::string>& parts, const std::function<void()>& call) {
  const std::optional<Error> error = ErrorOf(call);
  ASSERT_TRUE(error.has_value()) << "nothing was thrown";
  EXPECT_EQ(error->code(), code) << error->what();
  for (const std::string& part : parts) {
    EXPECT_NE(std::string(error->what()).find(part), std::string::npos) << error->what() << "\nlacks: " << part;
  }
}

}  // namespace damo::testing
