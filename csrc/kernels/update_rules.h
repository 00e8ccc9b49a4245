// The update rules. A new one is a header in optimizers/, included here, and a line in the list.
//
// A rule is a struct of static members that says all about it:
//
//   kName                     what Python and checkpoints call it: never changed
//   StateSize(dim)            how many float32 of state stand behind a row's weights
//   InitialState(config)      what each of these begins as
//   StaysFinite(step)         whether its own numbers let no row of ordinary size become infinite or NaN: see
//   StaysFinite
//                             below, which has what is common to all rules
//   Step, MakeStep(step)      the constants of one iteration, and how they are derived
//   Update(step, dim, updates, w, state, g)
//                             one update of a row with weights w and gradient g, its `updates`-th
//
// The rules are compiled for several instruction sets: nothing in them may become an out-of-line function.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/optimizer.h"
#include "kernels/optimizers/adagrad.h"
#include "kernels/optimizers/adam.h"
#include "kernels/optimizers/amsgrad.h"
#include "kernels/optimizers/ftrl.h"
#include "kernels/optimizers/lamb.h"
#include "kernels/optimizers/lars_sgd.h"
#include "kernels/optimizers/lion.h"
#include "kernels/optimizers/momentum_sgd.h"
#include "kernels/optimizers/partial_rowwise_adam.h"
#include "kernels/optimizers/partial_rowwise_lamb.h"
#include "kernels/optimizers/rowwise_adagrad.h"
#include "kernels/optimizers/sgd.h"
#include "row/row_bounds.h"

#define DAMO_UPDATE_RULES(X) \
  X(Sgd)                     \
  X(MomentumSgd)             \
  X(Adagrad)                 \
  X(RowWiseAdagrad)          \
  X(Adam)                    \
  X(AmsGrad)                 \
  X(PartialRowWiseAdam)      \
  X(Lamb)                    \
  X(PartialRowWiseLamb)      \
  X(LarsSgd)                 \
  X(Ftrl)                    \
  X(Lion)

namespace damo {

#define DAMO_KIND(Rule) k##Rule,
enum class OptimizerKind : uint8_t { DAMO_UPDATE_RULES(DAMO_KIND) };
#undef DAMO_KIND

#define DAMO_ONE(Rule) +1
constexpr int kOptimizerKinds = DAMO_UPDATE_RULES(DAMO_ONE);
#undef DAMO_ONE

// What the rule of this kind, or of the config's, says.
int StateSize(OptimizerKind kind, int dim);
float InitialState(const OptimizerConfig& config);

// Whether no update of rows within `bounds`, by gradients of at most `gradient`, can make one infinite or NaN. It
// is false only where numbers are far from what training gives: then each row has to be tried.
//
// Beyond float's 2^128 are products and quotients of weights up to 2^30, gradients up to 2^30 and state up to 2^50 only
// with rates above 2^6 or divisors below 2^-50: the largest, Adam's lr / (1 - beta1) * m / eps, is 2^6 * 2^20 * 2^50 *
// 2^50.
bool StaysFinite(const OptimizerStep& step, const RowBounds& bounds, float gradient);

// In the order of the list.
std::vector<std::string_view> OptimizerNames();
// Throws kInvalidArgument, with the names there are.
OptimizerKind OptimizerNamed(std::string_view name);

}  // namespace damo
