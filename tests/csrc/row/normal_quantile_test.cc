#include "row/normal_quantile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace damo {
namespace {

TEST(PortableLogTest, AgreesWithTheCLibrary) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> mantissa(1, 2);
  for (int exponent = -1022; exponent < 1024; ++exponent) {
    for (int i = 0; i < 20; ++i) {
      const double x = std::ldexp(mantissa(random), exponent);
      EXPECT_NEAR(PortableLog(x), std::log(x), 4 * std::numeric_limits<double>::epsilon() * std::abs(std::log(x))) << x;
    }
  }
}

TEST(PortableLogTest, IsAccurateAroundOne) {
  EXPECT_EQ(PortableLog(1), 0);
  for (double distance = 0.29; distance > 1e-16; distance /= 1.7) {
    for (const double x : {1 - distance, 1 + distance}) {
      EXPECT_NEAR(PortableLog(x), std::log(x), 4 * std::numeric_limits<double>::epsilon() * std::abs(std::log(x))) << x;
    }
  }
}

TEST(PortableLogTest, IsExactToTheLastPlacesAtPowersOfTwo) {
  for (int exponent = -1022; exponent < 1024; ++exponent) {
    EXPECT_DOUBLE_EQ(PortableLog(std::ldexp(1.0, exponent)), std::log(std::ldexp(1.0, exponent)));
  }
}

// Quantiles to 18 digits, computed with 60 by mpmath. One for each of the routine's three ranges and its borders at
// least.
TEST(NormalQuantileTest, GivesKnownQuantiles) {
  const struct {
    double p, x;
  } known[] = {{0.25, -0.674489750196081743},  {0.075, -1.43953147093845593},  {0.8413447460685429, 1},
               {0.975, 1.95996398454005386},   {0.995, 2.57582930354890045},   {0.9999, 3.71901648545570839},
               {1e-3, -3.09023230616781354},   {1e-5, -4.26489079392282461},   {0x1p-33, -6.33795775455378925},
               {1e-10, -6.3613409024040562},   {1e-11, -6.7060231554951363},   {1e-20, -9.26234008979840758},
               {1e-100, -21.2734535609653243}, {1e-300, -37.0470962993611992}, {0x1p-1022, -37.5193793471444998}};
  EXPECT_EQ(NormalQuantile(0.5), 0);
  for (const auto& [p, x] : known) EXPECT_NEAR(NormalQuantile(p), x, 2e-15 * std::abs(x)) << p;
}

TEST(NormalQuantileTest, InvertsTheDistributionFunction) {
  std::mt19937_64 random(2);
  for (int i = 0; i < 20000; ++i) {
    const double p = (static_cast<double>(random() >> 32) + 0.5) * 0x1p-32;
    const double x = NormalQuantile(p);
    // The smaller tail is the one where relative errors mean something.
    const double tail = 0.5 * std::erfc(std::abs(x) / std::sqrt(2.0));
    EXPECT_NEAR(tail, std::min(p, 1 - p), 1e-13 * tail) << p;
  }
}

TEST(NormalQuantileTest, IsOdd) {
  for (uint64_t bits = 1; bits < uint64_t{1} << 32; bits += 0x12345) {
    const double p = static_cast<double>(bits) * 0x1p-32;  // 1 - p is exact
    EXPECT_EQ(NormalQuantile(p), -NormalQuantile(1 - p)) << p;
  }
}

TEST(NormalQuantileTest, RisesAcrossItsRanges) {
  for (const double border : {std::exp(-25.0), 0.075, 0.5, 0.925}) {
    double previous = NormalQuantile(border * (1 - 1e-9));
    for (int i = -99; i <= 100; ++i) {
      const double x = NormalQuantile(border * (1 + i * 1e-11));
      EXPECT_GT(x, previous) << border << " " << i;
      previous = x;
    }
  }
}

}  // namespace
}  // namespace damo
