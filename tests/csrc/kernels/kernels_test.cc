#include "kernels/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "kernels/kernels_testing.h"

namespace damo {
namespace {

using testing::ExpectError;
using testing::InstructionSets;
using testing::RandomFloat;
using testing::RandomFloats;
using testing::RowBlock;

std::vector<int> Dims() {
  std::vector<int> dims;
  for (int dim = 1; dim <= 130; ++dim) dims.push_back(dim);
  for (const int dim : {192, 255, 256}) dims.push_back(dim);
  return dims;
}

// Equal bits, so that -0 is not 0 and a NaN is itself.
::testing::AssertionResult SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return ::testing::AssertionFailure() << "sizes differ";
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
      return ::testing::AssertionFailure() << "element " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// Now and then a zero of either sign or a denormal.
float AnyFloat(std::mt19937_64* random) {
  switch ((*random)() % 16) {
    case 0:
      return 0.0f;
    case 1:
      return -0.0f;
    case 2:
      return 0x1.23456p-130f;
    default:
      return RandomFloat(random);
  }
}

// Random rows, the last of them absent, and bags over them: some empty, some with one id, duplicates all over. The
// offsets do not begin at zero.
struct Bags {
  static constexpr size_t kRows = 20;
  static constexpr size_t kAbsentRow = kRows - 1;
  static constexpr size_t kBags = 40;

  Bags(int dim, bool weighted, UnseenRows unseen, uint64_t seed)
      : dim(dim), unseen(unseen), rows({dim, 1}, kRows), random(seed) {
    for (size_t r = 0; r < kRows; ++r) {
      for (int j = 0; j < dim; ++j) rows.weights(r)[j] = AnyFloat(&random);
    }
    SetRowFlags(rows.row(kAbsentRow), kAbsent | kDirty);
    for (int j = 0; j < dim; ++j) mean.push_back(RandomFloat(&random));
    offsets = {1000};
    for (size_t b = 0; b < kBags; ++b) offsets.push_back(offsets.back() + static_cast<int64_t>(random() % 5));
    for (int64_t i = 1000; i < offsets.back(); ++i) {
      row_of.push_back(random() % 8 == 0 ? kAbsentRow : random() % kRows);
      slots.push_back(rows.slot(row_of.back()));
      if (weighted) weights.push_back(RandomFloat(&random));
    }
    for (size_t b = 0; weighted && b < kBags; ++b) {
      if (offsets[b + 1] - offsets[b] == 2 && b % 3 == 0) weights[first(b)] = -weights[first(b) + 1];  // they cancel
    }
  }

  size_t first(size_t bag) const { return static_cast<size_t>(offsets[bag] - offsets[0]); }
  size_t end(size_t bag) const { return first(bag + 1); }
  double weight(size_t i) const { return weights.empty() ? 1 : weights[i]; }
  double element(size_t i, int j) {
    if (row_of[i] != kAbsentRow || unseen == UnseenRows::kInitial) return rows.weights(row_of[i])[j];
    return unseen == UnseenRows::kMean ? mean[static_cast<size_t>(j)] : 0;
  }
  double total(size_t bag) const {
    float total = 0;  // in float32: whether it is zero matters
    for (size_t i = first(bag); i < end(bag); ++i) total += static_cast<float>(weight(i));
    return total;
  }
  PoolArgs args(Pooling pooling, float* out, size_t stride) {
    return {rows.arena(),   slots.data(),
            offsets.data(), weights.empty() ? nullptr : weights.data(),
            kBags,          dim,
            pooling,        out,
            stride,         WeightType::kFloat32,
            nullptr,        unseen,
            mean.data()};
  }

  int dim;
  UnseenRows unseen;
  RowBlock rows;
  std::mt19937_64 random;
  std::vector<float> mean;
  std::vector<int64_t> offsets;
  std::vector<size_t> row_of;
  std::vector<Slot> slots;
  std::vector<float> weights;
};

class KernelsTest : public ::testing::TestWithParam<std::string> {
 protected:
  const Kernels& kernels_ = SelectKernels(GetParam());
  const Kernels& plain_ = SelectKernels("plain");
};

INSTANTIATE_TEST_SUITE_P(InstructionSets, KernelsTest, ::testing::ValuesIn(InstructionSets()),
                         [](const auto& info) { return info.param; });

std::vector<std::pair<int, UnseenRows>> DimsAndUnseenRows() {
  std::vector<std::pair<int, UnseenRows>> cases;
  for (const int dim : Dims()) {
    for (const UnseenRows unseen : {UnseenRows::kInitial, UnseenRows::kZeros, UnseenRows::kMean}) {
      cases.emplace_back(dim, unseen);
    }
  }
  return cases;
}

TEST_P(KernelsTest, PoolsAsInFloat64AndToTheSameBits) {
  for (const auto& [dim, unseen] : DimsAndUnseenRows()) {
    for (const bool weighted : {false, true}) {
      for (const Pooling pooling : {Pooling::kSum, Pooling::kMean}) {
        Bags bags(dim, weighted, unseen, static_cast<uint64_t>(dim));
        const size_t stride = static_cast<size_t>(dim) + 3;
        std::vector<float> out(Bags::kBags * stride, -77), expected = out;
        kernels_.pool(bags.args(pooling, out.data(), stride));
        plain_.pool(bags.args(pooling, expected.data(), stride));
        ASSERT_TRUE(SameBits(out, expected)) << "dim " << dim;
        for (size_t b = 0; b < Bags::kBags; ++b) {
          const double total = bags.total(b);
          for (int j = 0; j < dim; ++j) {
            double sum = 0, size = 0;
            for (size_t i = bags.first(b); i < bags.end(b); ++i) {
              sum += bags.weight(i) * bags.element(i, j);
              size += std::abs(bags.weight(i) * bags.element(i, j));
            }
            if (pooling == Pooling::kMean) {
              sum = total == 0 ? 0 : sum / total;
              size = total == 0 ? 0 : size / std::abs(total);
            }
            ASSERT_NEAR(out[b * stride + static_cast<size_t>(j)], sum, 1e-6 * size + 1e-37) << "bag " << b;
          }
          for (size_t j = static_cast<size_t>(dim); j < stride; ++j) ASSERT_EQ(out[b * stride + j], -77);
        }
      }
    }
  }
}

TEST_P(KernelsTest, WeightGradientsAreAsInFloat64AndToTheSameBits) {
  for (const auto& [dim, unseen] : DimsAndUnseenRows()) {
    for (const Pooling pooling : {Pooling::kSum, Pooling::kMean}) {
      Bags bags(dim, true, unseen, static_cast<uint64_t>(dim));
      const size_t stride = static_cast<size_t>(dim) + 3;
      const std::vector<float> grad = RandomFloats(&bags.random, Bags::kBags * stride);
      std::vector<float> result(bags.slots.size(), -77), expected = result;
      kernels_.weight_grad({bags.args(pooling, nullptr, 0), grad.data(), stride, result.data()});
      plain_.weight_grad({bags.args(pooling, nullptr, 0), grad.data(), stride, expected.data()});
      ASSERT_TRUE(SameBits(result, expected)) << "dim " << dim;
      for (size_t b = 0; b < Bags::kBags; ++b) {
        const double total = bags.total(b);
        std::vector<double> dots;
        double mean = 0, size = 0;
        for (size_t i = bags.first(b); i < bags.end(b); ++i) {
          dots.push_back(0);
          for (int j = 0; j < dim; ++j) {
            const double term = bags.element(i, j) * grad[b * stride + static_cast<size_t>(j)];
            dots.back() += term;
            size += std::abs(term) * (1 + std::abs(bags.weight(i)));
          }
          mean += bags.weight(i) * dots.back() / total;
        }
        for (size_t i = bags.first(b); i < bags.end(b); ++i) {
          double g = dots[i - bags.first(b)], tolerance = 1e-5 * size;
          if (pooling == Pooling::kMean) {
            g = total == 0 ? 0 : (g - mean) / total;
            tolerance *= total == 0 ? 0 : (1 + 1 / std::abs(total)) / std::abs(total);
          }
          ASSERT_NEAR(result[i], g, tolerance) << "dim " << dim << ", bag " << b;
        }
      }
    }
  }
}

// Rows with several occurrences each, of which some are scaled.
struct Updates {
  static constexpr size_t kRows = 30;

  Updates(OptimizerKind kind, int dim, uint64_t seed, WeightType type = WeightType::kFloat32)
      : dim(dim),
        type(type),
        rows({dim, StateSize(kind, dim), type}, kRows),
        random(seed),
        grads(200 * static_cast<size_t>(dim) + 1) {
    for (float& grad : grads) grad = AnyFloat(&random);
    for (size_t r = 0; r < kRows; ++r) {
      slots.push_back(rows.slot(r));
      std::vector<float> weights;
      for (int j = 0; j < dim; ++j) weights.push_back(AnyFloat(&random));
      EncodeWeights(type, dim, weights.data(), rows.row(r) + kPayloadOffset);
      for (int j = 0; j < StateSize(kind, dim); ++j) rows.state(r)[j] = std::abs(AnyFloat(&random));
      SetRowFlags(rows.row(r), static_cast<uint8_t>(r % 3 == 0 ? kAbsent : r % 3 == 1 ? kDirty : kPinned));
      rows.header(r)->count = r % 5 == 0 ? UINT32_MAX - 1 : static_cast<uint32_t>(r);
      begin.push_back(static_cast<uint32_t>(occurrences.size()));
      for (size_t n = 1 + random() % 4; n > 0; --n) {
        occurrences.push_back({grad(random() % 200), random() % 2 ? 1.0f : RandomFloat(&random)});
      }
    }
    begin.push_back(static_cast<uint32_t>(occurrences.size()));
    std::shuffle(slots.begin(), slots.end(), random);
  }

  // Not aligned to anything but a float.
  const float* grad(size_t i) const { return grads.data() + 1 + i * static_cast<size_t>(dim); }

  size_t Apply(const Kernels& kernels, const OptimizerConfig& config, uint32_t iter) {
    std::vector<float> buffer(2 * static_cast<size_t>(dim));
    const ApplyResult applied = kernels.apply[static_cast<int>(config.kind)](
        {rows.arena(), slots.data(), begin.data(), occurrences.data(), kRows, dim, MakeStep(config, iter), iter,
         buffer.data(), type, /*stream_key=*/17});
    RowBounds bounds;
    for (const Slot slot : slots) {
      bounds.Add(
          kernels.row_bounds({dim, StateSize(config.kind, dim), type}, RowAt(rows.arena(), slot) + kPayloadOffset));
    }
    EXPECT_EQ(applied.bounds.weights, bounds.weights);
    EXPECT_EQ(applied.bounds.state, bounds.state);
    return applied.created;
  }

  int dim;
  WeightType type;
  RowBlock rows;
  std::mt19937_64 random;
  std::vector<float> grads;
  std::vector<Slot> slots;
  std::vector<uint32_t> begin;
  std::vector<Occurrence> occurrences;
};

TEST_P(KernelsTest, AppliesEveryOptimizerToTheSameBits) {
  for (int kind = 0; kind < kOptimizerKinds; ++kind) {
    for (const WeightDecayMode mode : {WeightDecayMode::kL2, WeightDecayMode::kDecoupled}) {
      OptimizerConfig config;
      config.kind = static_cast<OptimizerKind>(kind);
      config.weight_decay_mode = mode;
      config.weight_decay = 0.01;
      for (const int dim : Dims()) {
        Updates updates(config.kind, dim, static_cast<uint64_t>(dim)), expected = updates;
        for (uint32_t iter = 1; iter <= 3; ++iter) {
          const size_t created = updates.Apply(kernels_, config, iter);
          EXPECT_EQ(created, iter == 1 ? Updates::kRows / 3 : 0);
          EXPECT_EQ(created, expected.Apply(plain_, config, iter));
        }
        ASSERT_EQ(updates.rows, expected.rows) << "optimizer " << kind << ", dim " << dim;
      }
    }
  }
}

TEST_P(KernelsTest, AppliesToRowsOf16BitsTheSameBits) {
  for (const WeightType type : {WeightType::kFloat16, WeightType::kBfloat16}) {
    for (int kind = 0; kind < kOptimizerKinds; ++kind) {
      OptimizerConfig config;
      config.kind = static_cast<OptimizerKind>(kind);
      for (const int dim : {1, 2, 7, 16, 33, 64}) {
        Updates updates(config.kind, dim, static_cast<uint64_t>(dim), type), expected = updates;
        for (uint32_t iter = 1; iter <= 3; ++iter) {
          EXPECT_EQ(updates.Apply(kernels_, config, iter), expected.Apply(plain_, config, iter));
        }
        ASSERT_EQ(updates.rows, expected.rows) << "optimizer " << kind << ", dim " << dim;
      }
    }
  }
}

TEST_P(KernelsTest, ClipsAndTurnsGradientsToTheSameBits) {
  OptimizerConfig config;
  config.maximize = true;
  config.clip_value = 0.5;
  config.clip_norm = 0.75;
  for (const int dim : Dims()) {
    Updates updates(config.kind, dim, static_cast<uint64_t>(dim)), expected = updates;
    updates.Apply(kernels_, config, 1);
    expected.Apply(plain_, config, 1);
    ASSERT_EQ(updates.rows, expected.rows) << "dim " << dim;
  }
}

TEST_P(KernelsTest, ApplyKeepsTheBooks) {
  Updates updates(OptimizerKind::kAdagrad, 5, 1);
  OptimizerConfig config;
  config.kind = OptimizerKind::kAdagrad;
  for (uint32_t iter = 7; iter <= 9; ++iter) updates.Apply(kernels_, config, iter);
  for (size_t r = 0; r < Updates::kRows; ++r) {
    EXPECT_EQ(RowFlags(updates.rows.row(r)), (r % 3 == 2 ? kPinned : 0) | kDirty | kChanged) << r;
    EXPECT_EQ(updates.rows.header(r)->last_step, 9u);
    // A full counter stays full.
    EXPECT_EQ(updates.rows.header(r)->count, r % 5 == 0 ? UINT32_MAX : r + 3);
  }
}

TEST_P(KernelsTest, OccurrencesAreSummedInTheirOrder) {
  const float huge = 0x1p30f, grads[] = {huge, 1, -huge, 0.25f};
  for (const int dim : {1, 16, 33, 64}) {
    const size_t n = static_cast<size_t>(dim);
    const std::vector<float> a(n, grads[0]), b(n, grads[1]), c(n, grads[2]), d(n, grads[3]);
    const Occurrence lost[] = {{a.data(), 1}, {b.data(), 1}, {c.data(), 1}, {d.data(), 1}};
    const Occurrence kept[] = {{a.data(), 0.5f}, {c.data(), 0.5f}, {b.data(), 1}, {d.data(), 2}};
    for (const auto& [occurrences, sum] : {std::pair{lost, 0.25f}, {kept, 1.5f}}) {
      RowBlock rows({dim, 0}, 1);
      const Slot slot = rows.slot(0);
      const uint32_t begin[] = {0, 4};
      std::vector<float> buffer(n);
      OptimizerConfig config;
      config.lr = 1;
      kernels_.apply[0]({rows.arena(), &slot, begin, occurrences, 1, dim, MakeStep(config, 1), 1, buffer.data()});
      for (int j = 0; j < dim; ++j) EXPECT_EQ(rows.weights(0)[j], -sum);
    }
  }
}

TEST_P(KernelsTest, MaxAbsBitsOrdersAllFloats) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr uint32_t kInfBits = 0x7F800000;
  const auto max_abs_bits = [&](const std::vector<float>& v) { return kernels_.max_abs_bits(v.data(), v.size()); };
  EXPECT_EQ(max_abs_bits({}), 0u);
  EXPECT_EQ(max_abs_bits({-0.0f, 0.0f}), 0u);
  EXPECT_EQ(max_abs_bits({0x1p-149f, -0.0f}), 1u);
  std::mt19937_64 random(3);
  for (size_t n = 1; n <= 130; ++n) {
    std::vector<float> values = RandomFloats(&random, n);
    float largest = 0;
    for (const float value : values) largest = std::max(largest, std::abs(value));
    EXPECT_EQ(max_abs_bits(values), std::bit_cast<uint32_t>(largest));
    const size_t at = random() % n;
    values[at] = -std::numeric_limits<float>::max();
    EXPECT_EQ(max_abs_bits(values), kInfBits - 1);
    values[at] = -kInf;
    EXPECT_EQ(max_abs_bits(values), kInfBits);
    for (const float nan : {kNan, -kNan}) {
      values[at] = nan;
      EXPECT_GT(max_abs_bits(values), kInfBits);
    }
  }
}

TEST_P(KernelsTest, DrawsTheSameRows) {
  for (const Distribution distribution : {Distribution::kConstant, Distribution::kUniform, Distribution::kNormal}) {
    const Initializer init = {distribution, 99, -0.3f, 0.7f, 0.01, 0.99};
    for (const int dim : Dims()) {
      for (const int64_t id : {std::numeric_limits<int64_t>::min(), int64_t{-1}, int64_t{123456789}}) {
        std::vector<float> row(static_cast<size_t>(dim) + 1, -77), expected = row;
        kernels_.draw_row(init, id, dim, row.data());
        DrawRow(init, id, dim, expected.data());
        ASSERT_TRUE(SameBits(row, expected)) << "dim " << dim;
      }
    }
  }
}

TEST(SelectKernelsTest, NamesWhatThereIs) {
  for (const std::string& name : InstructionSets()) EXPECT_EQ(SelectKernels(name).name, name);
  EXPECT_EQ(SelectKernels("auto").name, InstructionSets().back());
  const std::vector<std::string> widest_first = SupportedInstructionSets();
  EXPECT_EQ(std::vector<std::string>(widest_first.rbegin(), widest_first.rend()), InstructionSets());
  ExpectError(ErrorCode::kInvalidArgument, {"auto", "plain", "\"mmx\""}, [] { SelectKernels("mmx"); });
}

}  // namespace
}  // namespace damo
