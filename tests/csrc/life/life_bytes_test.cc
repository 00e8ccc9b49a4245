// A life's bytes: the same life when read, and refused if any of them is not what was written.
#include "life/life_bytes.h"

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"
#include "life/table_life.h"
#include "testing/errors.h"

namespace damo {
namespace {

using testing::ExpectError;

LifeOptions Options() {
  LifeOptions options;
  options.sightings = 2;
  options.within_steps = 100;
  options.idle = {{.steps = 30}, {.seconds = 25}};
  options.max_rows = 500;
  options.keep_rows = 400;
  return options;
}

// Something of everything.
LifeState State() {
  TableLife life(Options(), 0, 100);
  for (uint32_t step = 1; step <= 60; ++step) {
    life.BeginStep(step, 6, 100 + step + (step > 5 ? 20 : 0));
    for (uint32_t i = 0; i < 5; ++i) life.Add({step, i + 1}, i);
    life.AddSighting({step, 1});
    life.EndStep();
    if (step == 40 || step == 50) {
      for (int64_t id = 0; id < 300; ++id) life.Add({step, 0}, id);
    }
  }
  life.CountCreated(600);
  return DecodeLife(life.Serialize());
}

TEST(LifeBytes, AreWhatTheFormatSays) {
  LifeState state;
  state.iter = 0x01020304;
  state.buckets = {{0, 0}};
  state.cells = {{2, 0, 7}};
  const std::string bytes = EncodeLife(state);
  // docs/format.md
  EXPECT_EQ(bytes.size(), 4 + 4 + 24 + 4 + 34 * 8 + 24 + 4 + (4 + 16) + (4 + 11) + 4 + 5 + 16u);
  EXPECT_EQ(bytes.substr(0, 8), std::string("\1\0\0\0\4\3\2\1", 8));
  EXPECT_EQ(bytes.substr(bytes.size() - 16, 8), std::string("\7\0\0\0\0\0\0\0", 8));
}

TEST(LifeBytes, AreReadAsWhatWasWritten) {
  const LifeState state = State();
  EXPECT_GT(PartOf(state.ladder.position(0)), 0u);
  EXPECT_GT(state.leaps.size(), 0u);
  EXPECT_GT(state.cells.size(), 100u);
  EXPECT_GT(state.parts.size(), 100u);
  EXPECT_EQ(state.rules, Options().idle);
  EXPECT_EQ(DecodeLife(EncodeLife(state)), state);
  const TableLife life(EncodeLife(state), Options());
  EXPECT_EQ(life.Serialize(), EncodeLife(state));
  EXPECT_EQ(life.counts(), state.counts);
  EXPECT_EQ(life.ladder(), state.ladder);
}

TEST(LifeBytes, AreReadWithOtherOptions) {
  const std::string bytes = EncodeLife(State());
  const uint64_t before = TableLife(bytes, Options()).counts().expired[1];
  EXPECT_GT(before, 0u);
  LifeOptions options;
  options.idle = {Options().idle[1], {.steps = 7}};
  const TableLife life(bytes, options);
  EXPECT_EQ(life.counts().expired, (std::vector<uint64_t>{before, 0}));
  options.idle[1].steps = 0;
  ExpectError(ErrorCode::kInvalidArgument, {"expire[1]"}, [&] { TableLife(bytes, options); });
}

TEST(LifeBytes, AreRefusedIfTheyAreTooFewOrTooMany) {
  const std::string bytes = EncodeLife(State());
  for (size_t n = 0; n < bytes.size(); ++n) {
    ExpectError(ErrorCode::kCorruption, {"the life of rows"}, [&] { DecodeLife(bytes.substr(0, n)); });
  }
  ExpectError(ErrorCode::kCorruption, {"fewer bytes"}, [&] { DecodeLife(bytes + '\0'); });
  ExpectError(ErrorCode::kCorruption, {"version 1", "found 2"}, [&] { DecodeLife('\2' + bytes.substr(1)); });
}

TEST(LifeBytes, AreRefusedIfTheyAreOfNoLife) {
  const auto refuses = [](const std::string& what, const std::function<void(LifeState*)>& change) {
    LifeState state = State();
    change(&state);
    ExpectError(ErrorCode::kCorruption, {what}, [&] { DecodeLife(EncodeLife(state)); });
    ExpectError(ErrorCode::kCorruption, {what}, [&] { TableLife(EncodeLife(state), Options()); });
  };
  refuses("above the iteration", [](LifeState* s) { s->iter = 59; });
  refuses("ladder above", [](LifeState* s) { s->ladder.Raise(32, PositionOf(61)); });
  refuses("ladder above", [](LifeState* s) { s->ladder.Raise(0, PositionOf(60, 1)); });
  for (double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    refuses("finite", [=](LifeState* s) { s->time = bad; });
    refuses("finite", [=](LifeState* s) { s->clock = bad; });
    refuses("finite", [=](LifeState* s) { s->updated = bad; });
    refuses("finite", [=](LifeState* s) { s->leaps[0].gap = bad; });
    refuses("finite", [=](LifeState* s) { s->buckets[1].time = bad; });
    refuses("finite", [=](LifeState* s) { s->rules[1].seconds = bad; });
  }
  refuses("expire[0]", [](LifeState* s) { s->rules[0].seconds = 1; });
  refuses("1 to 2048 buckets", [](LifeState* s) { s->buckets.clear(); });
  refuses("1 to 2048 buckets", [](LifeState* s) { s->buckets.resize(2049); });
  refuses("positions that ascend", [](LifeState* s) { s->buckets[0].first = 1; });
  refuses("positions that ascend", [](LifeState* s) { s->buckets[2].first = s->buckets[1].first; });
  refuses("bucket above the iteration", [](LifeState* s) { s->buckets.back().first = PositionOf(61); });
  refuses("update later than the time", [](LifeState* s) { s->updated = s->time + 1; });
  refuses("update later than the time", [](LifeState* s) { s->updated = -1; });
  refuses("leap of the clock later", [](LifeState* s) { s->leaps.back().gap += s->time; });
  refuses("in ascending order", [](LifeState* s) { s->leaps.push_back(s->leaps.back()); });
  refuses("in ascending order", [](LifeState* s) { s->leaps.back().gap = 0; });
  refuses("more leaps", [](LifeState* s) { s->leaps.resize(257); });
  refuses("times that ascend", [](LifeState* s) { s->buckets[0].time = -1; });
  refuses("later than the time", [](LifeState* s) { s->buckets.back().time = s->time + 1; });
  refuses("cell that there is not", [](LifeState* s) { s->cells.back().count_class = 34; });
  refuses("cell that there is not", [](LifeState* s) { s->cells.back().bucket = 2000; });
  refuses("ascending order", [](LifeState* s) { std::swap(s->cells[0], s->cells[1]); });
  refuses("ascending order", [](LifeState* s) { s->cells[1] = s->cells[0]; });
  refuses("ascending order", [](LifeState* s) { std::swap(s->parts[0], s->parts[1]); });
  refuses("below the ladder", [](LifeState* s) { s->ladder.Raise(1, PositionOf(60)); });
  refuses("below the ladder", [](LifeState* s) { s->ladder.Raise(0, s->ladder.position(0) + 50); });
  refuses("without rows", [](LifeState* s) { s->cells[0].rows = 0; });
  refuses("without rows", [](LifeState* s) { s->parts[0].rows = 0; });
  refuses("more rows", [](LifeState* s) { s->cells[0].rows = uint64_t{1} << 63; });
  refuses("more rows", [](LifeState* s) { s->cells[0].rows = s->cells[1].rows = uint64_t{1} << 62; });
  refuses("set above", [](LifeState* s) { s->first_set_step = 61; });
  refuses("more steps with parts", [](LifeState* s) {
    s->iter = 1000;
    for (uint32_t step = 100; step < 400; ++step) s->parts.push_back({step, 0, 1});
  });
}

TEST(LifeBytes, AreRefusedOrReadAsWhatTheyAre) {
  const std::string bytes = EncodeLife(State());
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::string changed = bytes;
    changed[i] = static_cast<char>(changed[i] ^ 4);
    try {
      EXPECT_EQ(EncodeLife(DecodeLife(changed)), changed);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kCorruption);
    }
  }
}

}  // namespace
}  // namespace damo
