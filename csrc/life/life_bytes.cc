#include "life/life_bytes.h"

#include <bit>
#include <cmath>
#include <concepts>
#include <limits>
#include <tuple>

#include "base/status.h"
#include "life/set_steps.h"

namespace damo {
namespace {

constexpr uint32_t kLifeVersion = 1;

[[noreturn]] void Refuse(const std::string& what) { throw Error(ErrorCode::kCorruption, "the life of rows: " + what); }

void Require(bool holds, const char* what) {
  if (!holds) Refuse(what);
}

// ---- little-endian numbers

template <std::unsigned_integral T>
void Put(T value, std::string* bytes) {
  for (size_t i = 0; i < sizeof value; ++i) bytes->push_back(static_cast<char>(value >> (8 * i)));
}

void Put(double value, std::string* bytes) { Put(std::bit_cast<uint64_t>(value), bytes); }

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  template <std::unsigned_integral T>
  T Take() {
    Require(left_.size() >= sizeof(T), "expected more bytes than there are");
    T value = 0;
    for (size_t i = 0; i < sizeof value; ++i) {
      value = static_cast<T>(value | T{static_cast<unsigned char>(left_[i])} << (8 * i));
    }
    left_.remove_prefix(sizeof value);
    return value;
  }
  double TakeFinite() {
    const double value = std::bit_cast<double>(Take<uint64_t>());
    Require(std::isfinite(value), "expected finite times");
    return value;
  }
  // How many items follow, of so many bytes at least.
  size_t TakeSize(size_t item_bytes) {
    const auto n = Take<uint32_t>();
    Require(n <= left_.size() / item_bytes, "expected more bytes than there are");
    return n;
  }
  bool empty() const { return left_.empty(); }

 private:
  std::string_view left_;
};

// Numbers of rows, whose sum is one.
void AddTo(uint64_t* sum, uint64_t rows) {
  Require(rows > 0, "expected no cells without rows");
  Require(rows <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) - *sum, "more rows than there can be");
  *sum += rows;
}

struct Sums {
  uint64_t rows = 0, sighted = 0;
  bool operator==(const Sums&) const = default;
};

Sums SumsOf(const LifeState& state) {
  Sums sums;
  for (const LifeState::Cell& cell : state.cells) {
    (cell.count_class == kSightingClass ? sums.sighted : sums.rows) += cell.rows;
  }
  for (const LifeState::Part& part : state.parts) sums.rows += part.rows;
  return sums;
}

// ---- its parts, in their order

void PutLadder(const Ladder& ladder, std::string* bytes) {
  for (size_t c = 0; c < kLadderClasses; ++c) Put(ladder.position(c), bytes);
}

Ladder TakeLadder(uint32_t iter, Reader* reader) {
  Ladder ladder;
  for (size_t c = 0; c < kLadderClasses; ++c) {
    const auto position = reader->Take<uint64_t>();
    Require(position <= PositionOf(iter), "a ladder above the newest step");
    ladder.Raise(c, position);
  }
  return ladder;
}

void PutClock(const LifeState& state, std::string* bytes) {
  Put(state.time, bytes);
  Put(state.updated, bytes);
  Put(state.clock, bytes);
  Put(static_cast<uint32_t>(state.leaps.size()), bytes);
  for (const LifeClock::Leap& leap : state.leaps) {
    Put(leap.time, bytes);
    Put(leap.gap, bytes);
  }
}

void TakeClock(Reader* reader, LifeState* state) {
  state->time = reader->TakeFinite();
  state->updated = reader->TakeFinite();
  state->clock = reader->TakeFinite();
  Require(state->updated >= 0 && state->updated <= state->time, "an update later than the time");
  const size_t n = reader->TakeSize(16);
  Require(n <= LifeClock::kMostLeaps, "more leaps of the clock than there can be");
  double after = 0;
  for (size_t i = 0; i < n; ++i) {
    const LifeClock::Leap leap{reader->TakeFinite(), reader->TakeFinite()};
    Require(leap.time >= after && leap.gap > 0, "expected leaps of the clock in ascending order");
    after = leap.time + leap.gap;
    Require(after <= state->time, "a leap of the clock later than the time");
    state->leaps.push_back(leap);
  }
}

void PutCounts(const LifeState& state, std::string* bytes) {
  const LifeCounts& counts = state.counts;
  Put(counts.created, bytes);
  Put(counts.cut, bytes);
  Put(counts.forgotten_sightings, bytes);
  Put(static_cast<uint32_t>(state.rules.size()), bytes);
  for (size_t i = 0; i < state.rules.size(); ++i) {
    const IdleRule& rule = state.rules[i];
    Put(rule.steps, bytes);
    Put(rule.seconds, bytes);
    Put(rule.below_count, bytes);
    Put(counts.expired[i], bytes);
  }
}

void TakeCounts(Reader* reader, LifeState* state) {
  LifeCounts& counts = state->counts;
  counts.created = reader->Take<uint64_t>();
  counts.cut = reader->Take<uint64_t>();
  counts.forgotten_sightings = reader->Take<uint64_t>();
  const size_t n = reader->TakeSize(28);
  for (size_t i = 0; i < n; ++i) {
    IdleRule rule;
    rule.steps = reader->Take<uint32_t>();
    rule.seconds = reader->TakeFinite();
    rule.below_count = reader->Take<uint64_t>();
    state->rules.push_back(rule);
    counts.expired.push_back(reader->Take<uint64_t>());
  }
  LifeOptions options;
  options.idle = state->rules;
  try {
    CheckLifeOptions(options);
  } catch (const Error& error) {
    Refuse(error.what());
  }
}

void PutBuckets(const std::vector<Bucket>& buckets, std::string* bytes) {
  Put(static_cast<uint32_t>(buckets.size()), bytes);
  for (const Bucket& bucket : buckets) {
    Put(bucket.first, bytes);
    Put(bucket.time, bytes);
  }
}

std::vector<Bucket> TakeBuckets(uint32_t iter, double time, Reader* reader) {
  std::vector<Bucket> buckets(reader->TakeSize(16));
  Require(!buckets.empty() && buckets.size() <= kMostBuckets, "expected 1 to 2048 buckets");
  for (size_t b = 0; b < buckets.size(); ++b) {
    Bucket& bucket = buckets[b];
    bucket = {reader->Take<uint64_t>(), reader->TakeFinite()};
    Require(b == 0 ? bucket.first == 0 : bucket.first > buckets[b - 1].first, "expected positions that ascend from 0");
    Require(bucket.time >= (b == 0 ? 0 : buckets[b - 1].time), "expected times that ascend from 0");
  }
  Require(buckets.back().first < PositionOf(uint64_t{iter} + 1), "a bucket above the iteration");
  Require(buckets.back().time <= time, "a bucket later than the time");
  return buckets;
}

void PutCells(const LifeState& state, std::string* bytes) {
  Put(static_cast<uint32_t>(state.cells.size()), bytes);
  for (const LifeState::Cell& cell : state.cells) {
    Put(static_cast<uint8_t>(cell.count_class), bytes);
    Put(static_cast<uint16_t>(cell.bucket), bytes);
    Put(cell.rows, bytes);
  }
  Put(static_cast<uint32_t>(state.parts.size()), bytes);
  for (const LifeState::Part& part : state.parts) {
    Put(part.step, bytes);
    Put(static_cast<uint8_t>(part.part), bytes);
    Put(part.rows, bytes);
  }
}

void TakeCells(Reader* reader, LifeState* state) {
  uint64_t sum = 0;
  const size_t n = reader->TakeSize(11);
  for (size_t i = 0; i < n; ++i) {
    const LifeState::Cell cell{reader->Take<uint8_t>(), reader->Take<uint16_t>(), reader->Take<uint64_t>()};
    Require(cell.count_class < kLadderClasses && cell.bucket < state->buckets.size(), "a cell that there is not");
    const auto key = [](const LifeState::Cell& c) { return std::tuple(c.count_class, c.bucket); };
    Require(i == 0 || key(cell) > key(state->cells.back()), "expected cells in ascending order");
    Require(cell.bucket + 1 == state->buckets.size() ||
                state->buckets[cell.bucket + 1].first > state->ladder.position(cell.count_class),
            "rows below the ladder");
    AddTo(&sum, cell.rows);
    state->cells.push_back(cell);
  }
}

void TakeParts(Reader* reader, LifeState* state) {
  uint64_t sum = 0;
  size_t steps = 0;
  const size_t n = reader->TakeSize(13);
  for (size_t i = 0; i < n; ++i) {
    const LifeState::Part part{reader->Take<uint32_t>(), reader->Take<uint8_t>(), reader->Take<uint64_t>()};
    const auto key = [](const LifeState::Part& p) { return std::tuple(p.step, p.part); };
    Require(i == 0 || key(part) > key(state->parts.back()), "expected parts in ascending order");
    steps += i == 0 || part.step > state->parts.back().step ? 1 : 0;
    Require(part.step <= state->iter, "rows above the iteration");
    Require(PositionOf(part.step, part.part) >= state->ladder.position(0), "rows below the ladder");
    AddTo(&sum, part.rows);
    state->parts.push_back(part);
  }
  Require(steps <= SetSteps::kMost, "more steps with parts than there can be");
}

}  // namespace

std::string EncodeLife(const LifeState& state) {
  std::string bytes;
  Put(kLifeVersion, &bytes);
  Put(state.iter, &bytes);
  PutClock(state, &bytes);
  PutLadder(state.ladder, &bytes);
  PutCounts(state, &bytes);
  PutBuckets(state.buckets, &bytes);
  PutCells(state, &bytes);
  Put(state.first_set_step, &bytes);
  Put(static_cast<uint8_t>(state.too_many_set_steps), &bytes);
  const Sums sums = SumsOf(state);
  Put(sums.rows, &bytes);
  Put(sums.sighted, &bytes);
  return bytes;
}

LifeState DecodeLife(std::string_view bytes) {
  Reader reader(bytes);
  const auto version = reader.Take<uint32_t>();
  if (version != kLifeVersion) {
    Refuse("expected format version " + std::to_string(kLifeVersion) + ", found " + std::to_string(version));
  }
  LifeState state;
  state.iter = reader.Take<uint32_t>();
  TakeClock(&reader, &state);
  state.ladder = TakeLadder(state.iter, &reader);
  TakeCounts(&reader, &state);
  state.buckets = TakeBuckets(state.iter, state.time, &reader);
  TakeCells(&reader, &state);
  TakeParts(&reader, &state);
  state.first_set_step = reader.Take<uint32_t>();
  Require(state.first_set_step <= state.iter, "rows set above the iteration");
  const auto too_many = reader.Take<uint8_t>();
  Require(too_many <= 1, "expected a flag of 0 or 1");
  state.too_many_set_steps = too_many == 1;
  const Sums sums{reader.Take<uint64_t>(), reader.Take<uint64_t>()};
  Require(sums == SumsOf(state), "a sum of rows other than that of the cells");
  Require(reader.empty(), "expected fewer bytes than there are");
  return state;
}

}  // namespace damo
