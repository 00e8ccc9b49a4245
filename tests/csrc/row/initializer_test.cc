#include "row/initializer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

namespace damo {
namespace {

constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr uint64_t kStreamKey = 0x0123456789abcdef;

std::vector<float> Row(const Initializer& init, int64_t id, int dim) {
  std::vector<float> weights(static_cast<size_t>(dim) + 1, -77);
  DrawRow(init, id, dim, weights.data());
  EXPECT_EQ(weights.back(), -77) << "written behind the row";
  weights.pop_back();
  return weights;
}

Initializer Make(Distribution distribution, float a, float b, double low = 0, double high = 1) {
  return {distribution, kStreamKey, a, b, low, high};
}

// All draws of ids 0..n.
std::vector<float> Sample(const Initializer& init, int64_t n) {
  std::vector<float> sample;
  for (int64_t id = 0; id < n; ++id) {
    for (const float weight : Row(init, id, 16)) sample.push_back(weight);
  }
  return sample;
}

struct Moments {
  double mean = 0, deviation = 0;
};
Moments MomentsOf(const std::vector<float>& sample) {
  Moments m;
  for (const float x : sample) m.mean += x / static_cast<double>(sample.size());
  for (const float x : sample) m.deviation += (x - m.mean) * (x - m.mean) / static_cast<double>(sample.size());
  m.deviation = std::sqrt(m.deviation);
  return m;
}

// These rows are in people's stores: a row that comes to be next year must get the weights it would get today. From a
// Philox in Python integers, numpy's float32 and mpmath's quantiles.
TEST(InitializerTest, RowsStayWhatTheyAre) {
  using Rows = std::map<int64_t, std::vector<float>>;
  const Rows uniform = {
      {0, {0x1.72aa1p-3f, 0x1.9fab24p-3f, -0x1.738c26p-4f, 0x1.4121fcp-4f, 0x1.4ee244p-3f, 0x1.79fc6p-7f}},
      {-1, {-0x1.7c8424p-5f, -0x1.5c1b8p-7f, 0x1.63998cp-3f, 0x1.570c9p-4f, 0x1.aa8c9p-5f, -0x1.e5da24p-4f}},
      {kMin, {0x1.52eff8p-3f, 0x1.4f2d5p-5f, 0x1.0cab88p-3f, 0x1.3e20ccp-3f, -0x1.a94388p-5f, 0x1.24530cp-3f}},
      {kMax, {0x1.46244p-3f, 0x1.65f86p-7f, 0x1.f3fa88p-5f, 0x1.105dbp-3f, 0x1.2c82c4p-3f, 0x1.4a0d4p-3f}}};
  const Rows normal = {
      {0, {0x1.1dd65cp-1f, 0x1.261cccp-1f, 0x1.7096e6p-2f, 0x1.fa809ap-2f, 0x1.17c8a4p-1f, 0x1.d077ccp-2f}},
      {-1, {0x1.a42238p-2f, 0x1.c0f9c4p-2f, 0x1.1b3e1ap-1f, 0x1.fdbc82p-2f, 0x1.ea717ap-2f, 0x1.21d6a4p-2f}},
      {kMin, {0x1.18739cp-1f, 0x1.e3805ep-2f, 0x1.0d577ap-1f, 0x1.15107p-1f, 0x1.9f169ep-2f, 0x1.10fc92p-1f}},
      {kMax, {0x1.165b62p-1f, 0x1.d00e84p-2f, 0x1.eff312p-2f, 0x1.0de804p-1f, 0x1.124474p-1f, 0x1.16fe3p-1f}}};
  const Rows truncated = {
      {0, {0x1.c53f16p-5f, 0x1.2066dap-4f, -0x1.06bd6ep-3f, -0x1.4fd34ap-8f, 0x1.6a0548p-5f, -0x1.69c0a4p-5f}},
      {-1, {-0x1.59f39cp-4f, -0x1.de5f82p-5f, 0x1.9e378cp-5f, -0x1.148faep-9f, -0x1.48ff1p-6f, -0x1.6dad74p-3f}},
      {kMin, {0x1.741ccep-5f, -0x1.b2b942p-6f, 0x1.971816p-6f, 0x1.40dca8p-5f, -0x1.6c4b38p-4f, 0x1.02fceep-5f}},
      {kMax, {0x1.547054p-5f, -0x1.6cdc4ep-5f, -0x1.ea112p-7f, 0x1.a848aep-6f, 0x1.167114p-5f, 0x1.5e0fcap-5f}}};
  for (const auto& [id, row] : uniform) EXPECT_EQ(Row(Make(Distribution::kUniform, -0.125f, 0.3f), id, 6), row) << id;
  for (const auto& [id, row] : normal) EXPECT_EQ(Row(Make(Distribution::kNormal, 0.5f, 0.1f), id, 6), row) << id;
  const Initializer two_deviations = Make(Distribution::kNormal, 0, 0.1f, 0.02275013194817921, 0.9772498680518208);
  for (const auto& [id, row] : truncated) EXPECT_EQ(Row(two_deviations, id, 6), row) << id;
}

TEST(InitializerTest, ConstantRowsAreConstant) {
  for (const float value : {0.0f, -1.5f}) {
    EXPECT_EQ(Row(Make(Distribution::kConstant, value, 9), 7, 5), std::vector<float>(5, value));
  }
}

TEST(InitializerTest, AnElementDoesNotDependOnTheDim) {
  for (const Distribution distribution : {Distribution::kUniform, Distribution::kNormal}) {
    const std::vector<float> longest = Row(Make(distribution, 0, 1), -5, 131);
    for (int dim = 1; dim < 131; ++dim) {
      EXPECT_EQ(Row(Make(distribution, 0, 1), -5, dim), std::vector<float>(longest.begin(), longest.begin() + dim));
    }
  }
}

TEST(InitializerTest, RowsOfOtherIdsAndStreamsDiffer) {
  Initializer init = Make(Distribution::kUniform, 0, 1);
  std::map<std::vector<float>, int64_t> rows;
  for (const int64_t id : {kMin, int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{1} << 32, kMax}) {
    for (const uint64_t key : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32, kStreamKey}) {
      init.stream_key = key;
      EXPECT_TRUE(rows.emplace(Row(init, id, 8), id).second) << id << " " << key;
    }
  }
}

TEST(InitializerTest, UniformRowsFillTheirRangeEvenly) {
  constexpr float kLow = -0.25f, kHigh = 0.75f;
  const std::vector<float> sample = Sample(Make(Distribution::kUniform, kLow, kHigh), 20000);
  std::vector<int> histogram(20);
  for (const float x : sample) {
    ASSERT_GE(x, kLow);
    ASSERT_LE(x, kHigh);
    ++histogram[std::min<size_t>(19, static_cast<size_t>((x - kLow) * 20))];
  }
  // Five standard deviations of a binomial count.
  for (const int count : histogram) EXPECT_NEAR(count, 16000, 5 * std::sqrt(16000));
}

TEST(InitializerTest, UniformReachesItsBoundsAndNoFurther) {
  const Initializer init = Make(Distribution::kUniform, -0.01f, 0.01f);
  EXPECT_EQ(DrawWeight(init, 0), -0.01f);
  EXPECT_LE(DrawWeight(init, UINT32_MAX), 0.01f);
  EXPECT_GT(DrawWeight(init, UINT32_MAX), 0.0099999f);
}

TEST(InitializerTest, NormalRowsHaveTheirMoments) {
  const std::vector<float> sample = Sample(Make(Distribution::kNormal, 3, 0.5f), 20000);
  const Moments moments = MomentsOf(sample);
  EXPECT_NEAR(moments.mean, 3, 5 * 0.5 / std::sqrt(sample.size()));
  EXPECT_NEAR(moments.deviation, 0.5, 5 * 0.5 / std::sqrt(2.0 * static_cast<double>(sample.size())));
}

TEST(InitializerTest, NormalIsFiniteForAllBits) {
  const Initializer init = Make(Distribution::kNormal, 0, 1);
  EXPECT_NEAR(DrawWeight(init, 0), -6.33795775f, 1e-6f);
  EXPECT_EQ(DrawWeight(init, UINT32_MAX), -DrawWeight(init, 0));
}

TEST(InitializerTest, TruncatedNormalKeepsToItsQuantiles) {
  // One standard deviation on either side.
  const Initializer init = Make(Distribution::kNormal, 1, 2, 0.15865525393145705, 0.8413447460685429);
  const std::vector<float> sample = Sample(init, 20000);
  for (const float x : sample) ASSERT_LE(std::abs(x - 1), 2.000001f);
  // The standard normal within one deviation has variance 1 - 2 phi(1) / (2 Phi(1) - 1).
  const Moments moments = MomentsOf(sample);
  EXPECT_NEAR(moments.mean, 1, 0.01);
  EXPECT_NEAR(moments.deviation, 2 * std::sqrt(0.29112509), 0.01);
}

}  // namespace
}  // namespace damo
