// The bodies of kernels.h. Included by one file per instruction set, each of which defines DAMO_KERNELS_NAME.
// Everything here has internal linkage and calls nothing out of line, so that no instruction of a wider set can leak
// into code that runs on narrower machines.
#include "kernels/kernels.h"
#include "kernels/lane_sum.h"
#include "kernels/optimizers/trust_ratio.h"
#include "kernels/row_sum.h"
#include "kernels/update_rules.h"

namespace damo {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kPrefetchRows = 6;
constexpr ptrdiff_t kPrefetchOccurrences = 6;

DAMO_INLINE void PrefetchFloats(const void* start, size_t bytes) {
  const char* p = static_cast<const char*>(start);
  for (size_t offset = 0; offset < bytes; offset += kLine) __builtin_prefetch(p + offset);
  __builtin_prefetch(p + bytes - 1);
}

// The dim, fixed at compile time for the usual ones: loops over so few elements spend half their time in not knowing
// their number. kDim = 0 stands for a dim known at run time only.
template <int kDim>
DAMO_INLINE int Dim(int dim) {
  return kDim == 0 ? dim : kDim;
}

// Whether a row reads as something else than what it holds.
DAMO_INLINE bool ReadsOtherwise(const PoolArgs& a, const char* row) {
  return a.unseen != UnseenRows::kInitial && (RowFlags(row) & kAbsent);
}

template <class Weights, int kDim>
void PoolBags(const PoolArgs& a) {
  const int dim = Dim<kDim>(a.dim);
  const int64_t first = a.offsets[0];
  for (size_t b = 0; b < a.bags; ++b) {
    float* __restrict out = a.out + b * a.out_stride;
    const int64_t begin = a.offsets[b] - first, end = a.offsets[b + 1] - first;
    if (end - begin == 1 && a.weights == nullptr && a.part == nullptr) {
      const char* __restrict row = RowAt(a.arena, a.slots[begin]);
      if (!ReadsOtherwise(a, row)) {
        for (int j = 0; j < dim; ++j) out[j] = Weights::Load(row + kPayloadOffset, j);
        continue;
      }
    }
    float total = 0;
    RowSum<kDim> sum(dim, out);
    if (a.part == nullptr || a.part->first) {
      sum.Clear();
    } else {
      sum.Load();
      total = a.part->total;
    }
    for (int64_t i = begin; i < end; ++i) {
      const float weight = a.weights == nullptr ? 1.0f : a.weights[i];
      total += weight;
      const char* row = RowAt(a.arena, a.slots[i]);
      if (!ReadsOtherwise(a, row)) {
        sum.template Add<Weights>(weight, row + kPayloadOffset);
      } else if (a.unseen == UnseenRows::kMean) {
        sum.template Add<Float32Weights>(weight, reinterpret_cast<const char*>(a.mean));
      }
    }
    sum.Store();
    if (a.part != nullptr) a.part->total = total;
    if (a.pooling == Pooling::kMean && (a.part == nullptr || a.part->last)) {
      for (int j = 0; j < dim; ++j) out[j] = total == 0 ? 0 : out[j] / total;
    }
  }
}

// The gradient of a row whose occurrences these are: in place where one unscaled occurrence makes it, summed into
// `buffer` otherwise. Fetches gradients of occurrences that come later, of which the last ends at `end`.
template <int kDim>
DAMO_INLINE const float* SumOccurrences(const Occurrence* first, const Occurrence* last, const Occurrence* end, int dim,
                                        float* buffer) {
  const auto fetch_ahead = [&](const Occurrence* o) __attribute__((always_inline)) {
    if (end - o > kPrefetchOccurrences) PrefetchFloats(o[kPrefetchOccurrences].grad, sizeof(float) * dim);
  };
  fetch_ahead(first);
  if (last - first == 1 && first->scale == 1.0f) return first->grad;
  RowSum<kDim> sum(dim, buffer);
  sum.template Set<Float32Weights>(first->scale, reinterpret_cast<const char*>(first->grad));
  for (const Occurrence* o = first + 1; o != last; ++o) {
    fetch_ahead(o);
    sum.template Add<Float32Weights>(o->scale, reinterpret_cast<const char*>(o->grad));
  }
  sum.Store();
  return buffer;
}

// What a rule's gradient goes through first, in torch's order: the sign, then clipping, as
// torch.nn.utils.clip_grad_value_ and clip_grad_norm_ of the row alone.
struct GradientAdjustment {
  bool any;
  float sign;
  float clip_value;
  float clip_norm;

  explicit GradientAdjustment(const OptimizerConfig& c)
      : any(c.maximize || __builtin_isfinite(c.clip_value) || __builtin_isfinite(c.clip_norm)),
        sign(c.maximize ? -1.0f : 1.0f),
        clip_value(static_cast<float>(c.clip_value)),
        clip_norm(static_cast<float>(c.clip_norm)) {}

  [[gnu::always_inline]] const float* Adjust(int dim, const float* grad, float* buffer) const {
    for (int j = 0; j < dim; ++j) {
      const float g = sign * grad[j];
      buffer[j] = g > clip_value ? clip_value : g < -clip_value ? -clip_value : g;
    }
    const float norm = Norm(dim, [&](int j) __attribute__((always_inline)) { return buffer[j]; });
    const float scale = clip_norm / (norm + 1e-6f);
    if (scale < 1) {
      for (int j = 0; j < dim; ++j) buffer[j] *= scale;
    }
    return buffer;
  }
};

template <class Rule, class Weights, int kDim>
ApplyResult ApplyRows(const ApplyArgs& a) {
  const int dim = Dim<kDim>(a.dim);
  const RowLayout layout = {dim, Rule::StateSize(dim), Weights::kExact ? WeightType::kFloat32 : a.weight_type};
  const typename Rule::Step step = Rule::MakeStep(a.step);
  const GradientAdjustment adjustment(a.step.config);
  const size_t touched = layout.row_size();
  const Occurrence* const end = a.occurrences + a.begin[a.rows];
  size_t created = 0;
  RowMagnitudes magnitudes;
  for (size_t r = 0; r < a.rows; ++r) {
    if (r + kPrefetchRows < a.rows) {
      PrefetchFloats(RowAt(a.arena, a.slots[r + kPrefetchRows]), touched);
    }
    char* row = RowAt(a.arena, a.slots[r]);
    const float* grad =
        SumOccurrences<kDim>(a.occurrences + a.begin[r], a.occurrences + a.begin[r + 1], end, dim, a.buffer);
    if (adjustment.any) grad = adjustment.Adjust(dim, grad, a.buffer);
    RowHeader* header = HeaderOf(row, layout);
    header->last_step = a.iter;
    header->count += header->count != UINT32_MAX ? 1 : 0;
    if constexpr (Weights::kExact) {
      Rule::Update(step, dim, header->count, RowWeights(row), RowState(row, layout), grad);
    } else {
      float* weights = a.buffer + dim;
      char* stored = row + kPayloadOffset;
      for (int j = 0; j < dim; ++j) weights[j] = Weights::Load(stored, j);
      Rule::Update(step, dim, header->count, weights, RowState(row, layout), grad);
      const uint64_t seed = RoundingSeed(a.stream_key, RowId(row), a.iter);
      for (int j = 0; j < dim; ++j) Weights::Store(stored, j, weights[j], RoundingBits(seed, j));
    }
    magnitudes.Add<Weights>(row + kPayloadOffset, layout);
    const uint8_t flags = RowFlags(row);
    created += flags & kAbsent ? 1 : 0;
    SetRowFlags(row, static_cast<uint8_t>((flags & ~kAbsent) | kDirty | kChanged));
  }
  return {created, magnitudes.bounds()};
}

template <class Weights>
void WeightGradOf(const WeightGradArgs& a) {
  const PoolArgs& p = a.bags;
  const int64_t first = p.offsets[0];
  for (size_t b = 0; b < p.bags; ++b) {
    const float* grad = a.grad + b * a.grad_stride;
    const int64_t begin = p.offsets[b] - first, end = p.offsets[b + 1] - first;
    float total = 0, weighted = 0;
    for (int64_t i = begin; i < end; ++i) {
      float dot = 0;
      const char* row = RowAt(p.arena, p.slots[i]);
      if (!ReadsOtherwise(p, row)) {
        dot = LaneSum(p.dim, [&](int j) __attribute__((always_inline)) {
          return Weights::Load(row + kPayloadOffset, j) * grad[j];
        });
      } else if (p.unseen == UnseenRows::kMean) {
        dot = LaneSum(p.dim, [&](int j) __attribute__((always_inline)) { return p.mean[j] * grad[j]; });
      }
      a.weight_grad[i] = dot;
      total += p.weights[i];
      weighted += p.weights[i] * dot;
    }
    if (p.pooling != Pooling::kMean) continue;
    for (int64_t i = begin; i < end; ++i) {
      a.weight_grad[i] = total == 0 ? 0 : (a.weight_grad[i] - weighted / total) / total;
    }
  }
}

uint32_t MaxAbsBits(const float* values, size_t n) {
  uint32_t result = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t bits;
    __builtin_memcpy(&bits, values + i, sizeof bits);
    bits &= 0x7FFFFFFF;
    result = bits > result ? bits : result;
  }
  return result;
}

void Draw(const Initializer& init, int64_t id, int dim, float* weights) { DrawRow(init, id, dim, weights); }

void Pool(const PoolArgs& a) {
  if (a.weight_type == WeightType::kFloat16) return PoolBags<Float16Weights, 0>(a);
  if (a.weight_type == WeightType::kBfloat16) return PoolBags<Bfloat16Weights, 0>(a);
  switch (a.dim) {
    case 16:
      return PoolBags<Float32Weights, 16>(a);
    case 32:
      return PoolBags<Float32Weights, 32>(a);
    case 64:
      return PoolBags<Float32Weights, 64>(a);
    case 128:
      return PoolBags<Float32Weights, 128>(a);
    default:
      return PoolBags<Float32Weights, 0>(a);
  }
}

RowBounds Bounds(const RowLayout& layout, const char* payload) {
  RowMagnitudes magnitudes;
  WithWeights(layout.weight_type, [&](auto weights) { magnitudes.Add<decltype(weights)>(payload, layout); });
  return magnitudes.bounds();
}

template <class Rule>
ApplyResult Apply(const ApplyArgs& a) {
  if (a.weight_type == WeightType::kFloat16) return ApplyRows<Rule, Float16Weights, 0>(a);
  if (a.weight_type == WeightType::kBfloat16) return ApplyRows<Rule, Bfloat16Weights, 0>(a);
  switch (a.dim) {
    case 16:
      return ApplyRows<Rule, Float32Weights, 16>(a);
    case 32:
      return ApplyRows<Rule, Float32Weights, 32>(a);
    case 64:
      return ApplyRows<Rule, Float32Weights, 64>(a);
    case 128:
      return ApplyRows<Rule, Float32Weights, 128>(a);
    default:
      return ApplyRows<Rule, Float32Weights, 0>(a);
  }
}

void WeightGrad(const WeightGradArgs& a) {
  WithWeights(a.bags.weight_type, [&](auto weights) { WeightGradOf<decltype(weights)>(a); });
}

}  // namespace

extern const Kernels DAMO_KERNELS_SYMBOL;
#define DAMO_APPLY(Rule) Apply<Rule>,
const Kernels DAMO_KERNELS_SYMBOL = {
    DAMO_KERNELS_NAME, Pool, {DAMO_UPDATE_RULES(DAMO_APPLY)}, WeightGrad, MaxAbsBits, Bounds, Draw};
#undef DAMO_APPLY

}  // namespace damo
