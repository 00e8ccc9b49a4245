#include "engine/batch.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::OneFeature;

TEST(BatchTest, LengthsMustDescribeTheIds) {
  const int64_t ids[] = {1, 2, 3};
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const struct {
    std::vector<int64_t> lengths;
    std::vector<std::string> message;
  } wrong[] = {{{1, 1}, {"lengths", "3", "2"}},
               {{2, 2}, {"lengths", "3", "position 1"}},
               {{4, -1}, {"lengths", "position 0"}},
               {{-1, 4}, {"negative", "-1", "position 0"}},
               {{3, std::numeric_limits<int64_t>::min()}, {"negative", "position 1"}},
               {{kHuge, kHuge}, {"lengths", "position 0"}},
               {{}, {"lengths", "3", "0"}}};
  for (const auto& [lengths, message] : wrong) {
    ExpectError(ErrorCode::kInvalidArgument, message, [&, n = lengths.size(), data = lengths.data()] {
      MakeLookup(OneFeature(0), {ids, data, nullptr, 3, 1, n});
    });
  }
}

TEST(BatchTest, BagsThatCannotBeCountedAreRefused) {
  constexpr int64_t kQuarter = int64_t{1} << 62;
  const std::vector<int64_t> bags(4, kQuarter);  // which are none, modulo 2^64
  JaggedBatch batch{nullptr, nullptr, nullptr, 0, 4, 0, bags.data()};
  ExpectError(ErrorCode::kInvalidArgument, {"bags"}, [&] { MakeLookup({}, batch); });
  batch = {nullptr, nullptr, nullptr, 0, 1, size_t{1} << 63};
  ExpectError(ErrorCode::kInvalidArgument, {"bags"}, [&] { MakeLookup({}, batch); });
}

}  // namespace
}  // namespace damo
