#include "kernels/update_rules.h"

#include <algorithm>
#include <string>

#include "base/status.h"

namespace damo {
namespace {

// Calls f with the kind's struct.
template <class F>
auto WithRule(OptimizerKind kind, F f) {
  switch (kind) {
#define DAMO_CASE(Rule)        \
  case OptimizerKind::k##Rule: \
    return f(Rule());
    DAMO_UPDATE_RULES(DAMO_CASE)
#undef DAMO_CASE
  }
  __builtin_unreachable();
}

}  // namespace

int StateSize(OptimizerKind kind, int dim) {
  return WithRule(kind, [&](auto rule) { return rule.StateSize(dim); });
}

float InitialState(const OptimizerConfig& config) {
  return WithRule(config.kind, [&](auto rule) { return rule.InitialState(config); });
}

bool StaysFinite(const OptimizerStep& step, const RowBounds& bounds, float gradient) {
  const OptimizerConfig& c = step.config;
  const bool ordinary = FloatOf(bounds.weights) < 0x1p30f && FloatOf(bounds.state) < 0x1p50f && gradient < 0x1p30f;
  const bool tame = step.lr <= 0x1p6 && c.weight_decay <= 0x1p2;
  return ordinary && tame && WithRule(c.kind, [&](auto rule) { return rule.StaysFinite(step); });
}

std::vector<std::string_view> OptimizerNames() {
#define DAMO_NAME(Rule) Rule::kName,
  return {DAMO_UPDATE_RULES(DAMO_NAME)};
#undef DAMO_NAME
}

OptimizerKind OptimizerNamed(std::string_view name) {
  const std::vector<std::string_view> names = OptimizerNames();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found != names.end()) return static_cast<OptimizerKind>(found - names.begin());
  std::string known;
  for (const std::string_view one : names) known += (known.empty() ? "" : ", ") + std::string(one);
  throw Error(ErrorCode::kInvalidArgument, "optimizer must be one of " + known + ", got \"" + std::string(name) + "\"");
}

}  // namespace damo
