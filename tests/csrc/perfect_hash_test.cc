#include "perfect_hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "row_store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

// Of an odd number, modulo 2^64: each step doubles the bits that are right.
uint64_t Inverse(uint64_t odd) {
  uint64_t inverse = odd;
  for (int i = 0; i < 6; ++i) inverse *= 2 - odd * inverse;
  return inverse;
}

// The id that MixId makes h of.
int64_t Unmix(uint64_t h) {
  h ^= h >> 32;
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

// Expects each id to have a slot of its own; returns the part.
BuiltPart ExpectPerfect(const std::vector<int64_t>& ids) {
  const BuiltPart part = BuildPart(ids);
  const HashPart alone{0, static_cast<int64_t>(part.pilots.size()), 0, part.slots};
  std::vector<bool> taken(part.slots);
  for (const int64_t id : ids) {
    const int64_t row = PerfectHashRow(id, 0, 1, &alone, part.pilots.data());
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
  const std::vector<HashPart> parts = {{0, 1, 0, 1}, {5, 1000, 70, 4294967295}, {1005, 4294967295, 9, 123456}};
  const std::vector<uint16_t> pilots(2000, 65535);
  for (const int64_t id : {int64_t{0}, int64_t{-1}, kMin, kMax, int64_t{1} << 32, int64_t{123456789}}) {
    using Wide = unsigned __int128;
    Wide h = static_cast<uint64_t>(id);
    const Wide wrap = Wide{1} << 64;
    h = (h ^ h / 4294967296) * kPerfectHashConstants[0] % wrap;
    h = (h ^ h / 536870912) * kPerfectHashConstants[1] % wrap;
    h = h ^ h / 4294967296;
    const HashPart& part = parts[static_cast<size_t>(1 + (h / 4294967296) * 1 / 4294967296)];
    const Wide place = (h ^ 65535 * Wide{kPerfectHashConstants[2]} % wrap) * kPerfectHashConstants[3] % wrap;
    const Wide row = 70 + place / 4294967296 * Wide{4294967295} / 4294967296;
    EXPECT_EQ(MixId(id), static_cast<uint64_t>(h));
    EXPECT_EQ(PerfectHashRow(id, 1, 1, parts.data(), pilots.data()), static_cast<int64_t>(row)) << part.rows;
    EXPECT_EQ(BucketOf(MixId(id), parts[2]), 1005 + static_cast<int64_t>(h % 4294967296 * 4294967295 / 4294967296));
    EXPECT_EQ(PartOf(MixId(id), 3, 2147483647), 3 + static_cast<int64_t>(h / 4294967296 * 2147483647 / 4294967296));
  }
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
  EXPECT_LT(8.0 * part.slots + 2.0 * static_cast<double>(part.pilots.size()), 8.6 * static_cast<double>(ids.size()));
}

TEST_P(PerfectHashIdsTest, PartsAreEvenlyFilled) {
  std::vector<int> size(16);
  for (const int64_t id : Make(16'000, GetParam().id)) ++size[static_cast<size_t>(PartOf(MixId(id), 0, 16))];
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
  const BuiltPart part = BuildPart(ids);
  std::shuffle(ids.begin(), ids.end(), std::mt19937_64(1));
  const BuiltPart other = BuildPart(ids);
  EXPECT_EQ(part.slots, other.slots);
  EXPECT_EQ(part.pilots, other.pilots);
}

TEST(PerfectHashTest, IdsThatWereChosenToCollideTakeMoreSlots) {
  // All of them in one bucket.
  std::vector<int64_t> ids = Make(200, [](uint64_t i) { return Unmix(i << 33 | 12345); });
  EXPECT_GT(ExpectPerfect(ids).slots, 300u);
  // And beside others.
  for (int64_t id = 0; id < 3000; ++id) ids.push_back(id);
  ExpectPerfect(ids);
}

TEST(PerfectHashTest, IdsThatNoSlotsKeepApartAreRefused) {
  const std::vector<int64_t> ids = Make(8000, [](uint64_t i) { return Unmix(i << 33 | 12345); });
  ExpectError(ErrorCode::kInvalidArgument, {"8000 ids", "one bucket"}, [&] { BuildPart(ids); });
}

}  // namespace
}  // namespace damo
