#include "kernels/lane_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

namespace damo {
namespace {

float Sum(const std::vector<float>& terms) {
  return LaneSum(static_cast<int>(terms.size()), [&](int j) { return terms[static_cast<size_t>(j)]; });
}

// The documented order, recursively: the sum of the lanes l, l + stride, l + 2 * stride, ...
float TreeOfLanes(const std::vector<float>& terms, size_t lane, size_t stride) {
  if (stride < 16) return TreeOfLanes(terms, lane, 2 * stride) + TreeOfLanes(terms, lane + stride, 2 * stride);
  float sum = 0;
  for (size_t j = lane; j < terms.size(); j += 16) sum += terms[j];
  return sum;
}

constexpr size_t kMost = 130;

TEST(LaneSumTest, AddsEveryTermOnce) {
  std::vector<float> terms;
  float expected = 0;  // exact: integers below 2^24
  for (size_t n = 0; n <= kMost; ++n) {
    ASSERT_EQ(Sum(terms), expected) << n;
    terms.push_back(static_cast<float>(n * n + 1));
    expected += terms.back();
  }
}

TEST(LaneSumTest, AddsInTheDocumentedOrder) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-12, 12);
  std::vector<float> terms;
  for (size_t n = 0; n <= kMost; ++n) {
    ASSERT_EQ(Sum(terms), TreeOfLanes(terms, 0, 1)) << n;
    terms.push_back(std::exp2(exponent(random)) * (random() % 2 ? 1.0f : -1.0f));
  }
}

}  // namespace
}  // namespace damo
