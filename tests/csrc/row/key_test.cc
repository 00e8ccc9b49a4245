#include "row/key.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace damo {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

std::string Bytes(const Key& key) { return std::string(key.view()); }

TEST(KeyTest, BytesAreAsDocumented) {
  EXPECT_EQ(Bytes(EncodeKey(0x01020304, 0)), std::string("\x01\x02\x03\x04\x80\0\0\0\0\0\0\0", 12));
  EXPECT_EQ(Bytes(EncodeKey(0, -1)), std::string("\0\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 12));
  EXPECT_EQ(Bytes(EncodeKey(0, kMin)), std::string(12, '\0'));
  EXPECT_EQ(Bytes(EncodeKey(1, kMax)), std::string("\0\0\0\x01\xff\xff\xff\xff\xff\xff\xff\xff", 12));
  EXPECT_EQ(Bytes(EncodeDeletionKey(1, 0x1122)), std::string("\x80\0\0\x01\x80\0\0\0\0\0\x11\x22", 12));
}

TEST(KeyTest, BytewiseOrderIsTableThenSignedId) {
  std::vector<int64_t> ids = {kMin, kMin + 1, -(int64_t{1} << 32), -256, -1, 0, 1, 255, 256, int64_t{1} << 32, kMax};
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) ids.push_back(static_cast<int64_t>(random()));
  std::vector<std::pair<uint32_t, int64_t>> rows;
  for (const uint32_t table : {0u, 1u, 255u, 256u, 0x7fffffffu}) {
    for (const int64_t id : ids) rows.emplace_back(table, id);
  }
  std::sort(rows.begin(), rows.end());
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i - 1] == rows[i]) continue;
    const Key less = EncodeKey(rows[i - 1].first, rows[i - 1].second), more = EncodeKey(rows[i].first, rows[i].second);
    EXPECT_LT(std::memcmp(less.bytes.data(), more.bytes.data(), kKeySize), 0);
    EXPECT_LT(less, more);
  }
}

TEST(KeyTest, DecodesEveryId) {
  for (const int64_t id : {kMin, int64_t{-257}, int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{65536}, kMax}) {
    EXPECT_EQ(DecodeId(EncodeKey(7, id).view()), id);
    EXPECT_EQ(DecodeId(EncodeDeletionKey(7, id).view()), id);
  }
}

TEST(KeyTest, DecodesTheTable) {
  for (const uint32_t table : {0u, 1u, 0x01020304u, 0x7fffffffu}) {
    EXPECT_EQ(DecodeTable(EncodeKey(table, kMin).view()), table);
    EXPECT_EQ(DecodeTable(EncodeDeletionKey(table, kMax).view()), table | kDeletionBit);
  }
}

TEST(KeyTest, IsMadeOfItsBytesAndNoFewer) {
  const Key key = EncodeKey(0x01020304, -5);
  EXPECT_EQ(KeyOfBytes(key.view()), key);
  EXPECT_THROW(KeyOfBytes(key.view().substr(1)), Error);
  EXPECT_THROW(KeyOfBytes(std::string(kKeySize + 1, '\0')), Error);
}

TEST(KeyTest, TableRangeHoldsItsIdsAlone) {
  for (const uint32_t table : {0u, 41u, 0x7fffffffu}) {
    EXPECT_EQ(FirstKey(table), EncodeKey(table, kMin));
    EXPECT_EQ(LastKey(table), EncodeKey(table, kMax));
    EXPECT_LT(LastKey(table), FirstKey(table + 1));
  }
}

TEST(KeyTest, TableNumbersAreBelowTheDeletionRecords) {
  EXPECT_NO_THROW(CheckTableNumber(0x7fffffff));
  EXPECT_THROW(CheckTableNumber(0x80000000), Error);
}

}  // namespace
}  // namespace damo
