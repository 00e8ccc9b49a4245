#include "engine/weight_gradient.h"

#include <algorithm>
#include <vector>

namespace damo {
namespace {

// A mean over a bag that comes in parts: its sum of weights, and that of weights times what they weigh.
struct MeanInParts {
  float total = 0;
  float weighted = 0;
};

// Of the bags of one feature whose rows have been found, as if it were pooled so.
std::vector<float> OfFeature(Lookup* lookup, size_t feature, Pooling pooling, const float* grad, size_t stride,
                             const CachedTables& rows, const Compute& compute) DAMO_REQUIRES(store_mutex) {
  const Feature& of = lookup->features[feature];
  std::vector<float> result(lookup->ids_of(of), 0);
  PoolArgs bags = BagsOf(Unit{lookup, &of, 0, lookup->bags(of)}, rows);
  bags.pooling = pooling;
  compute.kernels->weight_grad({bags, grad, stride, result.data()});
  return result;
}

// What a window adds to the gradient, but for means over bags in parts.
void AddWindow(const Window& window, const std::vector<float>& of_window, float* weight_grad) {
  for (size_t i = 0; i < of_window.size(); ++i) weight_grad[window.first_id + i] += of_window[i];
}

}  // namespace

void FindWeightGradient(Lookup* lookup, const float* grad, size_t stride, const CachedTables& rows,
                        const Compute& compute, RowFinder* finder, float* weight_grad) {
  std::fill_n(weight_grad, lookup->batch.num_ids, 0.0f);
  const std::vector<Place> places = PlacesOf(*lookup, rows.tables, stride);
  const bool at_once = finder->KeepsSlots(*lookup);
  if (at_once && lookup->epoch != rows.cache.epoch()) finder->ResolveAll({&lookup, 1});
  // Features that share a key add to the same weights: one feature after the other.
  for (size_t f = 0; f < lookup->features.size(); ++f) {
    const Feature& feature = lookup->features[f];
    const float* of_feature = grad + places[f].offset;
    if (at_once) {
      const size_t first_id = static_cast<size_t>(lookup->bag_offsets(feature)[0]);
      AddWindow({lookup, f, 0, first_id},
                OfFeature(lookup, f, feature.pooling, of_feature, places[f].stride, rows, compute), weight_grad);
      continue;
    }
    const auto dots = [&](const Window& window, Pooling pooling) DAMO_REQUIRES(store_mutex) {
      finder->ResolveAll({&window.lookup, 1});
      return OfFeature(window.lookup, 0, pooling, of_feature + window.first_bag * places[f].stride, places[f].stride,
                       rows, compute);
    };
    std::vector<MeanInParts> means;
    finder->InWindows(*lookup, f, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
      const BagPart* part = window.lookup->part;
      if (part == nullptr || feature.pooling == Pooling::kSum) {
        AddWindow(window, dots(window, feature.pooling), weight_grad);
        return true;
      }
      if (part->first) means.emplace_back();
      const std::vector<float> of_part = dots(window, Pooling::kSum);
      for (size_t i = 0; i < of_part.size(); ++i) {
        means.back().total += window.lookup->batch.weights[i];
        means.back().weighted += window.lookup->batch.weights[i] * of_part[i];
      }
      return true;
    });
    if (means.empty()) continue;
    size_t bags = 0;
    finder->InWindows(*lookup, f, [&](const Window& window) DAMO_REQUIRES(store_mutex) {
      const BagPart* part = window.lookup->part;
      if (part == nullptr) return true;
      bags += part->first ? 1 : 0;
      const auto [total, weighted] = means[bags - 1];
      std::vector<float> of_part = dots(window, Pooling::kSum);
      for (float& dot : of_part) dot = total == 0 ? 0 : (dot - weighted / total) / total;
      AddWindow(window, of_part, weight_grad);
      return true;
    });
  }
}

}  // namespace damo
