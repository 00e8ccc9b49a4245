#include "serving/row_dtype.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "engine/store_testing.h"

namespace damo {
namespace {

using testing::ExpectError;

TEST(RowDtypeTest, IsFoundByItsName) {
  for (const RowDtype dtype : kRowDtypes) EXPECT_EQ(RowDtypeNamed(FactsOf(dtype).name), dtype);
  ExpectError(ErrorCode::kInvalidArgument, {"float32, float16", "\"float8\""}, [] { RowDtypeNamed("float8"); });
}

TEST(RowDtypeTest, AStoredRowReadsAsItsWeights) {
  const std::vector<float> weights = {1, -0.5f, 0, 127, 2, -3, 4, 5, -6, 7};  // exact in all of them, with scale 1
  for (const RowDtype dtype : kRowDtypes) {
    WithRowDtype(dtype, [&](auto rows) {
      std::vector<float> exact = weights, buffer(weights.size());
      if (rows.kScaled) exact[1] = -1;
      std::vector<char> stored(rows.kWeightBytes * exact.size());
      float scale = 1;
      rows.Encode(static_cast<int>(exact.size()), exact.data(), stored.data(), &scale);
      const typename decltype(rows)::Row row(stored.data(), exact.size(), scale, buffer.data());
      for (size_t j = 0; j < exact.size(); ++j) EXPECT_EQ(row[j], exact[j]) << rows.kName << " " << j;
    });
  }
}

TEST(RowDtypeTest, Float16IsRoundedToEven) {
  const std::vector<float> weights = {1, 1 + 0x1p-11f, 1 + 3 * 0x1p-11f, -65519.99f, 0x1p-25f, 0x1.8p-24f};
  std::vector<uint16_t> halves(weights.size());
  Float16Rows::Encode(static_cast<int>(weights.size()), weights.data(), reinterpret_cast<char*>(halves.data()),
                      nullptr);
  EXPECT_EQ(halves, (std::vector<uint16_t>{0x3C00, 0x3C00, 0x3C02, 0xFBFF, 0, 2}));
  for (const float beyond : {65520.0f, -65520.0f, std::numeric_limits<float>::infinity()}) {
    const float row[] = {0, beyond};
    ExpectError(ErrorCode::kInvalidArgument, {"weight 1 is", "65504"},
                [&] { Float16Rows::Encode(2, row, reinterpret_cast<char*>(halves.data()), nullptr); });
  }
}

TEST(RowDtypeTest, FaintRowsAreThoseBelowTheSmallestNormalNumber) {
  EXPECT_EQ(Float32Rows::kFaint, 0u);
  EXPECT_EQ(Float16Rows::kFaint, MagnitudeBits(0x1p-14f));
  EXPECT_EQ(Int8Rows::kFaint, MagnitudeBits(0x1p-119f));
  EXPECT_GE(0x1p-119f / 127.0f, std::numeric_limits<float>::min());
}

TEST(RowDtypeTest, Int8HasAScaleForEachRow) {
  const auto encode = [](std::vector<float> weights) {
    std::vector<int8_t> q(weights.size());
    float scale = -1;
    Int8Rows::Encode(static_cast<int>(q.size()), weights.data(), reinterpret_cast<char*>(q.data()), &scale);
    return std::pair(std::vector<int>(q.begin(), q.end()), scale);
  };
  EXPECT_EQ(encode({127, 0.5, 1.5, -0.5, -2.5, 126.5}), std::pair(std::vector<int>({127, 0, 2, 0, -2, 126}), 1.0f));
  EXPECT_EQ(encode({-254, 1, 3, 0, 0, 0}), std::pair(std::vector<int>({-127, 0, 2, 0, 0, 0}), 2.0f));
  EXPECT_EQ(encode({0, -0.0f}), std::pair(std::vector<int>({0, 0}), 0.0f));
  EXPECT_EQ(encode({1e-45f, 0}), std::pair(std::vector<int>({0, 0}), 0.0f));
  EXPECT_EQ(encode({3e38f, -3e38f}).first, (std::vector<int>{127, -127}));
  for (const float refused : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    ExpectError(ErrorCode::kInvalidArgument, {"weight 2 is", "finite"}, [&] { encode({0, 1, refused, refused}); });
  }
}

}  // namespace
}  // namespace damo
