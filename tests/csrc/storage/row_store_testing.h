// What the tests of row stores share: short ways to write and read rows.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "storage/row_store.h"
#include "testing/errors.h"
#include "testing/payload.h"
#include "testing/temporary_directory.h"

namespace damo::testing {

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
  std::vector<Found> found(ids.size());
  store->MultiGet(table, ids, payload_size, dst.data(), found.data());
  Table result;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (found[i] == Found::kRow) {
      result[ids[i]] = rows[i];
    } else {
      EXPECT_EQ(found[i], Found::kNothing);
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

}  // namespace damo::testing
