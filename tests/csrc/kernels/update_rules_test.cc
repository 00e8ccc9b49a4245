#include "kernels/update_rules.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/kernels_testing.h"

namespace damo {
namespace {

using testing::RandomFloats;
using testing::ReferenceRow;
using testing::ReferenceUpdate;
using testing::RowBlock;

struct Rule {
  std::string name;
  OptimizerConfig config;

  friend void PrintTo(const Rule& rule, std::ostream* out) { *out << rule.name; }
};

std::vector<Rule> Rules() {
  const OptimizerConfig sgd = {.kind = OptimizerKind::kSgd, .lr = 0.05};
  const OptimizerConfig adagrad = {.kind = OptimizerKind::kAdagrad, .lr = 0.1, .eps = 1e-10};
  const OptimizerConfig rowwise = {.kind = OptimizerKind::kRowWiseAdagrad, .lr = 0.1, .eps = 1e-8};
  const OptimizerConfig adam = {.kind = OptimizerKind::kAdam, .lr = 0.01};
  std::vector<Rule> rules;
  for (const auto& [name, config] :
       {std::pair{std::string("Sgd"), sgd}, {"Adagrad", adagrad}, {"RowWiseAdagrad", rowwise}, {"Adam", adam}}) {
    rules.push_back({name, config});
    rules.push_back({name + "L2", config});
    rules.back().config.weight_decay = 0.03;
    rules.push_back({name + "Decoupled", config});
    rules.back().config.weight_decay = 0.03;
    rules.back().config.weight_decay_mode = WeightDecayMode::kDecoupled;
    rules.push_back({name + "LrDecay", config});
    rules.back().config.lr_decay = 0.25;
    rules.push_back({name + "InitialState", config});
    rules.back().config.initial_accumulator_value = 0.5;
  }
  rules.push_back({"AdamOtherNumbers", adam});
  rules.back().config.beta1 = 0.5;
  rules.back().config.beta2 = 0.9;
  rules.back().config.eps = 0.1;
  rules.push_back({"AdamUncorrectedEps", adam});
  rules.back().config.eps = 0.1;
  rules.back().config.uncorrected_eps = true;
  return rules;
}

class UpdateRuleTest : public ::testing::TestWithParam<Rule> {
 protected:
  void ExpectUpdatesAsInFloat64(int dim);
};

INSTANTIATE_TEST_SUITE_P(Rules, UpdateRuleTest, ::testing::ValuesIn(Rules()),
                         [](const auto& info) { return info.param.name; });

// Each update goes on from the row's own float32, so that the only error is that of one update.
void UpdateRuleTest::ExpectUpdatesAsInFloat64(int dim) {
  const OptimizerConfig& config = GetParam().config;
  const size_t n = static_cast<size_t>(dim);
  const size_t state_size = static_cast<size_t>(StateSize(config.kind, dim));
  RowBlock rows({dim, static_cast<int>(state_size)}, 1);
  float* weights = rows.weights(0);
  float* state = rows.state(0);
  std::mt19937_64 random(static_cast<uint64_t>(dim));
  for (size_t j = 0; j < n; ++j) weights[j] = testing::RandomFloat(&random);
  for (size_t j = 0; j < state_size; ++j) state[j] = InitialState(config);
  std::vector<float> buffer(n);
  for (uint32_t iter = 1; iter <= 30; ++iter) {
    const std::vector<float> grad = RandomFloats(&random, n);
    ReferenceRow expected{{weights, weights + n}, {state, state + state_size}, 0, iter - 1};
    const std::vector<double> before = expected.weights;
    ReferenceUpdate(config, iter, {grad.begin(), grad.end()}, &expected);

    const Slot slot = rows.slot(0);
    const uint32_t begin[] = {0, 1};
    const Occurrence occurrence = {grad.data(), 1};
    SelectKernels("auto").apply[static_cast<int>(config.kind)](
        {rows.arena(), &slot, begin, &occurrence, 1, dim, MakeStep(config, iter), iter, buffer.data()});

    for (size_t j = 0; j < n; ++j) {
      const double change = std::abs(expected.weights[j] - before[j]) + config.lr;
      EXPECT_NEAR(weights[j], expected.weights[j], 2e-7 * std::abs(expected.weights[j]) + 1e-6 * change)
          << "weight " << j << ", iter " << iter;
    }
    // Half of Adam's state may be what is left of two large terms: its error is measured against those.
    for (size_t j = 0; j < state_size; ++j) {
      const double term = std::abs(grad[j % n]) + 0.03 * std::abs(before[j % n]);
      EXPECT_NEAR(state[j], expected.state[j], 1e-6 * (std::abs(expected.state[j]) + std::max(term, term * term)))
          << "state " << j << ", iter " << iter;
    }
    EXPECT_EQ(rows.header(0)->last_step, iter);
    EXPECT_EQ(rows.header(0)->count, iter);
  }
}

TEST_P(UpdateRuleTest, UpdatesAsInFloat64) {
  for (const int dim : {1, 7, 16, 64}) {
    SCOPED_TRACE(dim);
    ExpectUpdatesAsInFloat64(dim);
  }
}

// Numbers at the edges of what StaysFinite allows, and zeros, subnormals and ordinary ones.
class EdgeNumbers {
 public:
  explicit EdgeNumbers(uint64_t seed) : random_(seed) {}

  // Of this magnitude at most; the sign is left to chance.
  float Signed(float most) { return random_() % 2 ? Positive(most) : -Positive(most); }
  float Positive(float most) {
    switch (random_() % 6) {
      case 0:
        return 0;
      case 1:
        return std::numeric_limits<float>::denorm_min();
      case 2:
        return std::ldexp(1.0f, -100 + static_cast<int>(random_() % 60));
      case 3:
        return std::abs(testing::RandomFloat(&random_));
      default:
        return most;
    }
  }
  template <class T>
  T OneOf(std::initializer_list<T> values) {
    return values.begin()[random_() % values.size()];
  }

 private:
  std::mt19937_64 random_;
};

OptimizerConfig AtTheEdge(int kind, EdgeNumbers* edge) {
  OptimizerConfig c = {.kind = static_cast<OptimizerKind>(kind)};
  c.lr = edge->OneOf({0x1p6, 0x1p-40, 0.01, 1e-30});
  c.weight_decay = edge->OneOf({0.0, 0x1p2, 0x1p-60, 0.01});
  c.weight_decay_mode = edge->OneOf({WeightDecayMode::kL2, WeightDecayMode::kDecoupled});
  c.eps = edge->OneOf({0x1p-50, 1e-8, 1.0});
  c.beta1 = edge->OneOf({1 - 0x1p-20, 0.9, 0.0});
  c.beta2 = edge->OneOf({1 - 0x1p-20, 0.999, 0.0});
  c.momentum = edge->OneOf({0.0, 0.9, 0x1p2});
  c.dampening = edge->OneOf({0.0, 1.0, -0x1p2});
  c.nesterov = edge->OneOf({false, true});
  c.eta = edge->OneOf({0x1p6, 0.001});
  c.beta = edge->OneOf({0.0, 1.0, 0x1p20});
  c.lambda1 = edge->OneOf({0.0, 0.1, 0x1p50});
  c.lambda2 = edge->OneOf({0.0, 0x1p-20, 0x1p50});
  c.maximize = edge->OneOf({false, true});
  c.uncorrected_eps = edge->OneOf({false, true});
  c.rowwise_bias_correction = edge->OneOf({false, true});
  c.corrected_max = edge->OneOf({false, true});
  c.clip_norm = edge->OneOf({std::numeric_limits<double>::infinity(), 1e-30, 1.0, 1e300});
  c.clip_value = edge->OneOf({std::numeric_limits<double>::infinity(), 1e-30, 1.0, 1e300});
  return c;
}

// State is never negative where a rule takes its root; the sign of moments is.
void FillState(OptimizerKind kind, int dim, EdgeNumbers* edge, float* state) {
  const bool first_is_moment = kind != OptimizerKind::kAdagrad && kind != OptimizerKind::kRowWiseAdagrad;
  const float most = std::nextafter(0x1p50f, 0.0f);
  for (int j = 0; j < StateSize(kind, dim); ++j) {
    state[j] = first_is_moment && j < dim ? edge->Signed(most) : edge->Positive(most);
  }
}

TEST(UpdateRulesTest, WhatIsSaidToStayFiniteDoes) {
  const float most = std::nextafter(0x1p30f, 0.0f);
  for (int kind = 0; kind < kOptimizerKinds; ++kind) {
    EdgeNumbers edge(static_cast<uint64_t>(kind));
    int said = 0;
    for (int round = 0; round < 4000; ++round) {
      const int dim = edge.OneOf({1, 7, 64});
      const OptimizerConfig config = AtTheEdge(kind, &edge);
      const RowLayout layout = {dim, StateSize(config.kind, dim)};
      RowBlock rows(layout, 1);
      for (int j = 0; j < dim; ++j) rows.weights(0)[j] = edge.Signed(most);
      FillState(config.kind, dim, &edge, rows.state(0));
      std::vector<float> grad(static_cast<size_t>(dim));
      for (float& g : grad) g = edge.Signed(most);
      const uint32_t iter = edge.OneOf<uint32_t>({1, 2, 1000, UINT32_MAX});
      const OptimizerStep step = MakeStep(config, iter);
      const Slot slot = rows.slot(0);
      const Kernels& kernels = SelectKernels("auto");
      const RowBounds before = kernels.row_bounds(layout, RowAt(rows.arena(), slot) + kPayloadOffset);
      if (!StaysFinite(step, before, most)) continue;
      ++said;
      const uint32_t begin[] = {0, 1};
      const Occurrence occurrence = {grad.data(), 1};
      std::vector<float> buffer(2 * grad.size());
      const ApplyResult applied =
          kernels.apply[kind]({rows.arena(), &slot, begin, &occurrence, 1, dim, step, iter, buffer.data()});
      ASSERT_TRUE(applied.bounds.finite()) << OptimizerNames()[static_cast<size_t>(kind)] << ", round " << round;
    }
    EXPECT_GT(said, 400) << OptimizerNames()[static_cast<size_t>(kind)];
  }
}

TEST(UpdateRulesTest, NothingIsSaidOfNumbersThatAreFarFromOrdinary) {
  const RowBounds ordinary = {FloatBits(1.0f), FloatBits(1.0f)};
  const OptimizerConfig adam = {.kind = OptimizerKind::kAdam};
  EXPECT_TRUE(StaysFinite(MakeStep(adam, 1), ordinary, 1));
  EXPECT_FALSE(StaysFinite(MakeStep(adam, 1), ordinary, 0x1p30f));
  EXPECT_FALSE(StaysFinite(MakeStep(adam, 1), {FloatBits(0x1p30f), 0}, 1));
  EXPECT_FALSE(StaysFinite(MakeStep(adam, 1), {0, FloatBits(0x1p50f)}, 1));
  EXPECT_FALSE(StaysFinite(MakeStep(adam, 1), {kInfinity, 0}, 1));
  EXPECT_FALSE(StaysFinite(MakeStep(adam, 1), ordinary, std::numeric_limits<float>::quiet_NaN()));
  for (int kind = 0; kind < kOptimizerKinds; ++kind) {
    const OptimizerConfig fast = {.kind = static_cast<OptimizerKind>(kind), .lr = 1e30};
    EXPECT_FALSE(StaysFinite(MakeStep(fast, 1), ordinary, 1));
  }
  for (const OptimizerKind kind : {OptimizerKind::kAdagrad, OptimizerKind::kRowWiseAdagrad, OptimizerKind::kAdam}) {
    EXPECT_FALSE(StaysFinite(MakeStep({.kind = kind, .eps = 0}, 1), ordinary, 1));
  }
}

TEST(UpdateRulesTest, StateSizesAreThoseOfTheRules) {
  for (const int dim : {1, 2, 64}) {
    EXPECT_EQ(StateSize(OptimizerKind::kSgd, dim), 0);
    EXPECT_EQ(StateSize(OptimizerKind::kAdagrad, dim), dim);
    EXPECT_EQ(StateSize(OptimizerKind::kRowWiseAdagrad, dim), 1);
    EXPECT_EQ(StateSize(OptimizerKind::kAdam, dim), 2 * dim);
    EXPECT_EQ(StateSize(OptimizerKind::kAmsGrad, dim), 3 * dim);
    EXPECT_EQ(StateSize(OptimizerKind::kPartialRowWiseLamb, dim), dim + 1);
  }
}

TEST(UpdateRulesTest, StateBeginsAsZerosButForAccumulators) {
  const std::vector<std::string_view> names = OptimizerNames();
  ASSERT_EQ(names.size(), static_cast<size_t>(kOptimizerKinds));
  for (const std::string_view name : names) {
    const OptimizerConfig config = {.kind = OptimizerNamed(name), .initial_accumulator_value = 0.5};
    const bool accumulates = name == "ADAGRAD" || name == "ROWWISE_ADAGRAD";
    EXPECT_EQ(InitialState(config), accumulates ? 0.5f : 0.0f) << name;
  }
}

TEST(UpdateRulesTest, AreFoundByTheirNames) {
  EXPECT_EQ(OptimizerNamed("SGD"), OptimizerKind::kSgd);
  EXPECT_EQ(OptimizerNamed("LION"), OptimizerKind::kLion);
  testing::ExpectError(ErrorCode::kInvalidArgument, {"SGD, MOMENTUM_SGD", "\"sgd\""}, [] { OptimizerNamed("sgd"); });
}

}  // namespace
}  // namespace damo
