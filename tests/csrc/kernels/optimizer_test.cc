#include "kernels/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "kernels/kernels_testing.h"

namespace damo {
namespace {

TEST(OptimizerStepTest, BiasCorrectionHoldsAtEveryIteration) {
  OptimizerConfig config;
  config.kind = OptimizerKind::kAdam;
  config.lr = 1;
  for (const double beta2 : {0.9, 0.999, 0.999999}) {
    config.beta2 = beta2;
    for (const uint32_t iter : {1u, 2u, 3u, 10u, 1000u, 123457u, 1000000u, UINT32_MAX}) {
      const OptimizerStep step = MakeStep(config, iter);
      const double correction1 = -std::expm1(iter * std::log(config.beta1));
      const double correction2 = -std::expm1(iter * std::log(config.beta2));
      EXPECT_NEAR(step.bias.step_size, 1 / correction1, 1e-6 / correction1) << iter;
      EXPECT_NEAR(step.bias.inv_sqrt_bias2, 1 / std::sqrt(correction2), 1e-6 / std::sqrt(correction2)) << iter;
    }
  }
}

TEST(OptimizerStepTest, DecayedLearningRateIsTorchs) {
  OptimizerConfig config;
  config.lr = 0.5;
  config.lr_decay = 0.1;
  EXPECT_EQ(MakeStep(config, 1).lr, 0.5f);
  EXPECT_EQ(MakeStep(config, 11).lr, 0.25f);
  EXPECT_FLOAT_EQ(MakeStep(config, UINT32_MAX).lr, static_cast<float>(0.5 / (1 + 0.1 * (UINT32_MAX - 1.0))));
}

TEST(HyperparametersTest, AreSetByName) {
  OptimizerConfig config;
  SetHyperparameter(&config, "lambda1", 0.25);
  SetHyperparameter(&config, "nesterov", 1);
  EXPECT_EQ(config.lambda1, 0.25);
  EXPECT_TRUE(config.nesterov);
  testing::ExpectError(ErrorCode::kInvalidArgument, {"\"lambda3\""}, [&] { SetHyperparameter(&config, "lambda3", 1); });
}

}  // namespace
}  // namespace damo
