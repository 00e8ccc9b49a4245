#include "serving/perfect_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "storage/row_store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// The inverse of an odd number, modulo 2^64: each step doubles the bits that are right.
uint64_t Inverse(uint64_t odd) {
  uint64_t inverse = odd;
  for (int i = 0; i < 6; ++i) inverse *= 2 - odd * inverse;
  return inverse;
}

// The id that MixId makes h of.
int64_t Unmix(uint64_t h) {
  h *= Inverse(kPerfectHashConstants[1]);
  h ^= h >> 29 ^ h >> 58;
  h *= Inverse(kPerfectHashConstants[0]);
  h ^= h >> 32;
  return static_cast<int64_t>(h);
}

template <class F>
std::vector<int64_t> Make(size_t n, F f) {
  std::vector<int64_t> ids(n);
  for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int64_t>(f(static_cast<uint64_t>(i)));
  return ids;
}

constexpr int64_t kNumber = 4711;

BuiltPart Build(const std::vector<int64_t>& ids) { return BuildPart(ids, kNumber, NumBuckets(ids.size())); }

// Expects each id to have a slot of its own; returns the part.
BuiltPart ExpectPerfect(const std::vector<int64_t>& ids) {
  const BuiltPart part = Build(ids);
  const HashTable table{0, static_cast<int64_t>(part.buckets.size()) - 1};
  const HashPart slots = HashPart::At(0, part.slots);
  EXPECT_EQ(part.slots % 2, 1u);
  std::vector<bool> taken(part.slots);
  for (const int64_t id : ids) {
    const int64_t bucket = part.buckets[static_cast<size_t>(BucketOf(MixId(id), table))];
    EXPECT_EQ(PartOf(bucket), kNumber);
    const int64_t row = RowOf(MixId(id), bucket, slots);
    if (row < 0 || row >= part.slots) {
      ADD_FAILURE() << "id " << id << " is at " << row << " of " << part.slots;
      return part;
    }
    EXPECT_FALSE(taken[static_cast<size_t>(row)]) << "id " << id << " is not alone at " << row;
    taken[static_cast<size_t>(row)] = true;
  }
  return part;
}

TEST(PerfectHashTest, MixIdIsABijection) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t h = random();
    EXPECT_EQ(MixId(Unmix(h)), h);
  }
}

TEST(PerfectHashTest, TheFunctionIsTheOneThatGraphsCompute) {
  const std::vector<HashPart> parts = {HashPart::At(0, 1), HashPart::At(70, 4294967295), HashPart::At(9, 123457)};
  EXPECT_EQ(parts[1].middle_row, 70 + int64_t{2147483647});
  EXPECT_EQ(parts[2].middle_row, 9 + 61728);
  std::vector<int64_t> buckets(1029);
  for (size_t i = 5; i < buckets.size(); ++i) buckets[i] = MakeBucket(static_cast<uint16_t>(64 * i), 1 + i % 2);
  EXPECT_EQ(buckets[1023], int64_t{65472} << 24 | 2);
  for (const int64_t id : {int64_t{0}, int64_t{-1}, kMin, kMax, int64_t{1} << 32, int64_t{123456789}}) {
    using Wide = unsigned __int128;
    const Wide wrap = Wide{1} << 64;
    Wide h = static_cast<uint64_t>(id);
    h = (h ^ h / 4294967296) * kPerfectHashConstants[0] % wrap;
    h = (h ^ h / 536870912) * kPerfectHashConstants[1] % wrap;
    EXPECT_EQ(MixId(id), static_cast<uint64_t>(h));
    const HashTable table{5, 1023};
    EXPECT_EQ(BucketOf(MixId(id), table), 5 + static_cast<int64_t>(h % 1024));
    const int64_t bucket = buckets[static_cast<size_t>(5 + h % 1024)];
    const Wide place = (h ^ static_cast<uint64_t>(bucket)) * kPerfectHashConstants[2] % wrap;
    const __int128 number = static_cast<__int128>(place) - (place >= wrap / 2 ? static_cast<__int128>(wrap) : 0);
    // A float64 takes 53 bits of it.
    const long double rows = bucket % 2 == 1 ? 4294967295.0L : 123457.0L;
    const double scaled = static_cast<double>(number) * static_cast<double>(rows * 0x1p-64L);
    const int64_t row = parts[static_cast<size_t>(bucket & 0xFFFFFF)].middle_row + static_cast<int64_t>(scaled);
    EXPECT_EQ(RowOf(MixId(id), bucket, parts[static_cast<size_t>(PartOf(bucket))]), row);
  }
}

TEST(PerfectHashTest, RowsStayInTheirPart) {
  for (const uint32_t rows : {1u, 3u, 101u, 131071u, 4294967295u}) {
    const HashPart part = HashPart::At(1000, rows);
    for (const int64_t place : {kMin, kMin + 1, int64_t{-1}, int64_t{0}, int64_t{1}, kMax - 1, kMax}) {
      // The id whose hash a bucket of 0 brings to that place.
      const uint64_t h = static_cast<uint64_t>(place) * Inverse(kPerfectHashConstants[2]);
      const int64_t row = RowOf(h, 0, part);
      EXPECT_GE(row, 1000) << rows;
      EXPECT_LT(row, 1000 + int64_t{rows}) << rows;
    }
    EXPECT_EQ(RowOf(uint64_t{1} << 63, 0, part), 1000) << rows;
  }
}

TEST(PerfectHashTest, BucketsHaveTwoToFourIdsOnAverage) {
  EXPECT_EQ(NumBuckets(0), 1u);
  EXPECT_EQ(NumBuckets(4), 1u);
  EXPECT_EQ(NumBuckets(5), 2u);
  EXPECT_EQ(NumBuckets(1'000'000), 262'144u);
}

TEST(PerfectHashTest, FewIds) {
  EXPECT_EQ(ExpectPerfect({}).slots, 1u);
  for (const int64_t id : {int64_t{0}, int64_t{-1}, kMin, kMax}) EXPECT_EQ(ExpectPerfect({id}).slots, 1u);
  ExpectPerfect({0, 1, -1, kMin, kMax, int64_t{1} << 32, -(int64_t{1} << 32)});
  for (size_t n = 2; n < 200; ++n) {
    const BuiltPart part = ExpectPerfect(Make(n, [](uint64_t i) { return i; }));
    EXPECT_LE(part.slots, n + n / 50 + 1);
  }
}

struct Kind {
  std::string name;
  uint64_t (*id)(uint64_t);
};

class PerfectHashIdsTest : public ::testing::TestWithParam<Kind> {};

INSTANTIATE_TEST_SUITE_P(
    Ids, PerfectHashIdsTest,
    ::testing::Values(Kind{"Sequential", [](uint64_t i) { return i; }},
                      Kind{"FromTheSmallest", [](uint64_t i) { return i + (uint64_t{1} << 63); }},
                      Kind{"Negative", [](uint64_t i) { return ~i; }},
                      Kind{"HighHalf", [](uint64_t i) { return i << 32; }},
                      Kind{"HighestBits", [](uint64_t i) { return i << 44; }},
                      Kind{"SpreadBits", [](uint64_t i) { return (i & 0x3FF) << 54 | i >> 10; }},
                      Kind{"Reversed", [](uint64_t i) { return i << 32 | (i * 2654435761 & 0xFFFFFFFF); }},
                      Kind{"GoldenSteps", [](uint64_t i) { return i * 0x9E3779B97F4A7C15u; }},
                      Kind{"StepsOfAConstant", [](uint64_t i) { return i * 0xBEA225F9EB34556Du; }}),
    [](const auto& info) { return info.param.name; });

TEST_P(PerfectHashIdsTest, EachHasItsSlotAndFewAreEmpty) {
  const std::vector<int64_t> ids = Make(30'000, GetParam().id);
  const BuiltPart part = ExpectPerfect(ids);
  // Ids that are spread evenly leave no buckets of one id for the last slots.
  EXPECT_LT(part.slots, 1.06 * static_cast<double>(ids.size()));
}

TEST_P(PerfectHashIdsTest, PartsAreEvenlyFilled) {
  std::vector<int> size(16);
  const HashTable table{0, 4095};
  for (const int64_t id : Make(16'000, GetParam().id)) ++size[static_cast<size_t>(BucketOf(MixId(id), table) / 256)];
  EXPECT_GT(*std::min_element(size.begin(), size.end()), 800);
  EXPECT_LT(*std::max_element(size.begin(), size.end()), 1200);
}

TEST(PerfectHashTest, TheLargestPart) {
  std::mt19937_64 random(1);
  std::set<int64_t> ids;
  while (ids.size() < kMostKeysPerPart) ids.insert(static_cast<int64_t>(random()));
  const BuiltPart part = ExpectPerfect({ids.begin(), ids.end()});
  EXPECT_LT(part.slots, 1.02 * kMostKeysPerPart);
}

TEST(PerfectHashTest, TheOrderOfIdsDoesNotMatter) {
  std::vector<int64_t> ids = Make(5000, [](uint64_t i) { return i * i; });
  const BuiltPart part = Build(ids);
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64(1));
  const BuiltPart other = Build(ids);
  EXPECT_EQ(part.slots, other.slots);
  EXPECT_EQ(part.buckets, other.buckets);
}

TEST(PerfectHashTest, IdsThatWereChosenToCollideTakeMoreSlots) {
  // All of them in one bucket.
  std::vector<int64_t> ids = Make(200, [](uint64_t i) { return Unmix(i << 24 | 12345); });
  EXPECT_GT(ExpectPerfect(ids).slots, 300u);
  // And beside others.
  for (int64_t id = 0; id < 3000; ++id) ids.push_back(id);
  ExpectPerfect(ids);
}

TEST(PerfectHashTest, IdsThatNoSlotsKeepApartAreRefused) {
  const std::vector<int64_t> ids = Make(8000, [](uint64_t i) { return Unmix(i << 24 | 12345); });
  ExpectError(ErrorCode::kInvalidArgument, {"8000 ids", "one bucket"}, [&] { Build(ids); });
}

}  // namespace
}  // namespace damo
