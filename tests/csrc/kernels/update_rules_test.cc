#include "kernels/update_rules.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
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
