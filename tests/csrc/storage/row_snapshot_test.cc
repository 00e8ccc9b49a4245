// Rows of a snapshot that cannot be those of a table: out of order, too many or too few.

#include "storage/row_snapshot.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "row/row.h"
#include "storage/row_store.h"
#include "testing/errors.h"

namespace damo {
namespace {

using testing::ExpectError;

class Listed : public RowIterator {
 public:
  explicit Listed(std::vector<int64_t> ids) : ids_(std::move(ids)) {}

  bool Next(int64_t* id, const char** payload) override {
    if (next_ == ids_.size()) return false;
    *id = ids_[next_++];
    *payload = payload_.data();
    return true;
  }

 private:
  const std::vector<int64_t> ids_;
  const std::vector<char> payload_ = std::vector<char>(1024);
  size_t next_ = 0;
};

class ListedSnapshot : public RowStoreSnapshot {
 public:
  explicit ListedSnapshot(std::vector<int64_t> ids) : ids_(std::move(ids)) {}

  std::unique_ptr<RowIterator> Scan(uint32_t, size_t, uint64_t, bool) const override {
    return std::make_unique<Listed>(ids_);
  }

 private:
  const std::vector<int64_t> ids_;
};

// Reads all rows of a table that should have three.
size_t ReadAll(std::vector<int64_t> ids, uint64_t since = 0) {
  const RowLayout layout{.dim = 4};
  auto open = std::make_shared<OpenSnapshot>(std::make_unique<ListedSnapshot>(std::move(ids)));
  const RowSnapshot snapshot({{"t", 7, layout, {1, 3}}}, open);
  const std::unique_ptr<RowIterator> rows = snapshot.Scan(0, since);
  size_t n = 0;
  int64_t id;
  const char* payload;
  while (rows->Next(&id, &payload)) ++n;
  return n;
}

TEST(RowSnapshotTest, RowsAreAsManyAsTheTableHasInTheOrderOfTheirIds) {
  EXPECT_EQ(ReadAll({-5, 0, 9}), 3u);
  EXPECT_EQ(ReadAll({-5, 9}, /*since=*/1), 2u);
  ExpectError(ErrorCode::kCorruption, {"table \"t\"", "2 rows, expected 3"}, [] { ReadAll({1, 2}); });
  ExpectError(ErrorCode::kCorruption, {"table \"t\"", "4 rows, expected 3"}, [] { ReadAll({1, 2, 3, 4}); });
  ExpectError(ErrorCode::kCorruption, {"table \"t\"", "id 2 behind 3"}, [] { ReadAll({1, 3, 2}); });
  ExpectError(ErrorCode::kCorruption, {"table \"t\"", "id 3 behind 3"}, [] { ReadAll({3, 3}, /*since=*/1); });
}

}  // namespace
}  // namespace damo
