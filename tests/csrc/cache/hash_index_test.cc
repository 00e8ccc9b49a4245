#include "cache/hash_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace damo {
namespace {

using Model = std::map<Slot, uint32_t>;  // slot to tag

// Every slot that the index has under `tag`.
std::set<Slot> SlotsUnder(const HashIndex& index, uint32_t tag) {
  std::set<Slot> slots;
  const Slot none = index.Find(tag, [&](Slot slot) {
    EXPECT_TRUE(slots.insert(slot).second) << "twice under a tag: " << slot;
    return false;
  });
  EXPECT_EQ(none, kMissingSlot);
  return slots;
}

void ExpectHolds(const HashIndex& index, const Model& model, const std::vector<uint32_t>& tags) {
  std::map<uint32_t, std::set<Slot>> slots_of_tag;
  for (const auto& [slot, tag] : model) slots_of_tag[tag].insert(slot);
  ASSERT_EQ(index.size(), model.size());
  for (const uint32_t tag : tags) ASSERT_EQ(SlotsUnder(index, tag), slots_of_tag[tag]) << "tag " << tag;
}

struct Shape {
  std::string name;
  size_t rows;
  std::vector<uint32_t> tags;

  friend void PrintTo(const Shape& shape, std::ostream* out) { *out << shape.name; }
};

std::vector<uint32_t> Spread(uint32_t first, uint32_t step, size_t n) {
  std::vector<uint32_t> tags;
  for (size_t i = 0; i < n; ++i) tags.push_back(first + step * static_cast<uint32_t>(i));
  return tags;
}

const Shape kShapes[] = {
    {"OneHome", 12, {5}},
    {"OneHomeOfManyTags", 12, Spread(0x40000000, 1, 8)},
    {"FirstHome", 20, Spread(0, 1, 4)},
    {"LastHomeWrapsAround", 20, Spread(UINT32_MAX - 3, 1, 4)},
    {"BothEnds", 20, {0, 1, 0x0a000000, UINT32_MAX - 0x0a000000, UINT32_MAX - 1, UINT32_MAX}},
    {"FewRows", 3, Spread(0, 0x08000000, 32)},
    {"AllHomes", 40, Spread(0, 0x02000000, 128)},
    {"ManyRows", 600, Spread(7, 0x00123457, 2000)},
};

class HashIndexTest : public ::testing::TestWithParam<Shape> {};

INSTANTIATE_TEST_SUITE_P(Shapes, HashIndexTest, ::testing::ValuesIn(kShapes),
                         [](const auto& info) { return info.param.name; });

TEST_P(HashIndexTest, RandomOperationsMatchAMap) {
  const auto& [name, rows, tags] = GetParam();
  std::mt19937 random(7);
  HashIndex index(rows);
  Model model;
  Slot next_slot = 2;
  const auto random_entry = [&] {
    auto entry = model.begin();
    std::advance(entry, random() % model.size());
    return *entry;
  };
  const int operations = 20000 / static_cast<int>(tags.size() + 10);
  for (int i = 0; i < operations; ++i) {
    // Fills up in some phases and empties in others.
    const bool growing = (i / static_cast<int>(4 * rows)) % 2 == 0;
    if (model.empty() || (model.size() < rows && random() % 4 < (growing ? 3 : 1))) {
      const uint32_t tag = tags[random() % tags.size()];
      index.Insert(tag, next_slot);
      model[next_slot++] = tag;
    } else if (random() % 3 == 0) {
      const auto [slot, tag] = random_entry();
      index.Replace(tag, slot, next_slot);
      model.erase(slot);
      model[next_slot++] = tag;
    } else {
      const auto [slot, tag] = random_entry();
      index.Erase(tag, slot);
      model.erase(slot);
    }
    ExpectHolds(index, model, tags);
    if (HasFatalFailure()) FAIL() << "after operation " << i;
  }
}

TEST_P(HashIndexTest, EmptiesInAnyOrder) {
  const auto& [name, rows, tags] = GetParam();
  std::mt19937 random(8);
  for (int round = 0; round < 5; ++round) {
    HashIndex index(rows);
    Model model;
    std::vector<Slot> slots;
    for (Slot slot = 2; model.size() < rows; ++slot) {
      model[slot] = tags[random() % tags.size()];
      index.Insert(model[slot], slot);
      slots.push_back(slot);
    }
    std::shuffle(slots.begin(), slots.end(), random);
    for (const Slot slot : slots) {
      index.Erase(model[slot], slot);
      model.erase(slot);
      if (rows < 100 || slot % 16 == 0) ExpectHolds(index, model, tags);
    }
    ExpectHolds(index, {}, tags);
  }
}

TEST_P(HashIndexTest, AnotherSizeTakesEveryEntry) {
  const auto& [name, rows, tags] = GetParam();
  std::mt19937 random(9);
  HashIndex index(rows);
  Model model;
  for (Slot slot = 2; model.size() < rows; ++slot) {
    model[slot] = tags[random() % tags.size()];
    index.Insert(model[slot], slot);
  }
  for (const size_t other_rows : {rows, rows + 1, 3 * rows, 50 * rows}) {
    HashIndex other(other_rows);
    other.InsertAll(index);
    ExpectHolds(other, model, tags);
  }
  ExpectHolds(index, model, tags);
}

TEST(HashIndexTest, FindsTheSlotThatMatches) {
  HashIndex index(10);
  for (const Slot slot : {10u, 20u, 30u}) index.Insert(99, slot);
  for (const Slot slot : {10u, 20u, 30u}) EXPECT_EQ(index.Find(99, [&](Slot s) { return s == slot; }), slot);
  EXPECT_EQ(index.Find(99, [](Slot s) { return s == 40; }), kMissingSlot);
  EXPECT_EQ(index.Find(98, [](Slot) { return true; }), kMissingSlot);
}

TEST(HashIndexTest, BytesForCoversTheTable) {
  for (const size_t rows : {size_t{0}, size_t{1}, size_t{2}, size_t{1000}, size_t{1000003}}) {
    const HashIndex index(rows);
    EXPECT_GE(HashIndex::BytesFor(rows), index.capacity() * sizeof(uint64_t)) << rows;
    EXPECT_GT(index.capacity(), rows) << "no entry would be empty";
  }
}

class HashTagTest : public ::testing::TestWithParam<int64_t> {};

INSTANTIATE_TEST_SUITE_P(Strides, HashTagTest,
                         ::testing::Values(1, -1, 26, 1000, int64_t{1} << 10, int64_t{1} << 32, int64_t{1} << 40,
                                           (int64_t{1} << 32) + 1));

// 2^16 ids thrown at 2^16 homes leave 1 / e of them empty, give or take 1 % (some ten standard deviations).
TEST_P(HashTagTest, SpreadsStridedIdsLikeRandomOnes) {
  constexpr int64_t kIds = 1 << 16;
  std::vector<bool> used(kIds);
  uint64_t id = 0;
  for (int64_t i = 0; i < kIds; ++i, id += static_cast<uint64_t>(GetParam())) {
    used[HashTag(3, static_cast<int64_t>(id)) >> 16] = true;
  }
  const auto empty = static_cast<double>(std::count(used.begin(), used.end(), false));
  EXPECT_NEAR(empty / kIds, std::exp(-1), 0.01);
}

TEST(HashTagTest, TheSameIdsOfTwoTablesAreApart) {
  int equal = 0;
  for (int64_t id = -50000; id < 50000; ++id) equal += HashTag(0, id) == HashTag(1, id);
  EXPECT_LE(equal, 2);
  EXPECT_NE(HashTag(0, std::numeric_limits<int64_t>::min()), HashTag(0, std::numeric_limits<int64_t>::max()));
}

}  // namespace
}  // namespace damo
