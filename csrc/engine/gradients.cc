#include "engine/gradients.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace damo {
namespace {

constexpr size_t kLine = 64;

// Calls f(position of the id in its feature, its bag's position, scale) for the bags of `feature`: what one occurrence
// of an id adds to its row's gradient is scale times the gradient of its bag.
template <class F>
void ForEachOccurrence(const Lookup& lookup, const Feature& feature, F f) {
  const int64_t* offsets = lookup.bag_offsets(feature);
  const float* weights = lookup.batch.weights;
  for (size_t bag = 0; bag < lookup.bags(feature); ++bag) {
    float total = 1;
    if (feature.pooling == Pooling::kMean) {
      total = weights == nullptr ? static_cast<float>(offsets[bag + 1] - offsets[bag]) : 0;
      for (int64_t i = offsets[bag]; weights != nullptr && i < offsets[bag + 1]; ++i) total += weights[i];
    }
    for (int64_t i = offsets[bag]; i < offsets[bag + 1]; ++i) {
      const float weight = weights == nullptr ? 1.0f : weights[i];
      f(static_cast<size_t>(i - offsets[0]), bag, total == 0 ? 0.0f : weight / total);
    }
  }
}

}  // namespace

void GatherGradients(const TableShare& share, std::span<const PlacedGradient> parts, float grad_scale,
                     const CachedTables& rows, RowGradients* s) {
  const uint16_t table = share.table;
  const size_t shares = share.shares;
  s->slots.clear();
  s->gathered.clear();
  for (const PlacedGradient& part : parts) {
    const Lookup& lookup = *part.lookup;
    for (size_t f = 0; f < lookup.features.size(); ++f) {
      const Feature& feature = lookup.features[f];
      if (feature.table != table) continue;
      const Slot* slots = lookup.slots.data() + lookup.first_slot[f];
      const float* grad = part.grad + part.places[f].offset;
      const size_t stride = part.places[f].stride;
      ForEachOccurrence(lookup, feature, [&](size_t i, size_t bag, float scale) {
        if (shares > 1 && (slots[i] * 0x9E3779B1u >> 16) % shares != share.share) return;
        s->slots.push_back(slots[i]);
        s->gathered.push_back({grad + bag * stride, scale / grad_scale});
      });
    }
  }
  const RowCache& cache = rows.cache;
  const size_t n = s->slots.size();
  const size_t row_bytes = rows.tables[table].layout.row_size();
  size_t table_size = 16;
  while (table_size < 2 * n) table_size *= 2;
  s->hash_table.assign(table_size, 0);
  s->rows.clear();
  s->begin.assign(1, 0);
  s->row_of.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const Slot slot = s->slots[i];
    size_t h = (uint64_t{slot * 0x9E3779B1u} * table_size) >> 32;
    while (s->hash_table[h] != 0 && s->rows[s->hash_table[h] - 1] != slot) h = h + 1 == table_size ? 0 : h + 1;
    if (s->hash_table[h] == 0) {
      s->rows.push_back(slot);
      const char* row = cache.Row(slot);
      for (size_t offset = 0; offset < row_bytes; offset += kLine) __builtin_prefetch(row + offset, 1);
      s->begin.push_back(0);
      s->hash_table[h] = static_cast<uint32_t>(s->rows.size());
    }
    s->row_of[i] = s->hash_table[h] - 1;
    ++s->begin[s->row_of[i] + 1];
  }
  for (size_t r = 1; r < s->begin.size(); ++r) s->begin[r] += s->begin[r - 1];
  s->occurrences.resize(n);
  // Placing shifts begin[r] to the end of row r, which is where row r + 1 begins.
  for (size_t i = 0; i < n; ++i) s->occurrences[s->begin[s->row_of[i]]++] = s->gathered[i];
  for (size_t r = s->begin.size() - 1; r > 0; --r) s->begin[r] = s->begin[r - 1];
  s->begin[0] = 0;
  s->buffer.resize(2 * static_cast<size_t>(rows.tables[table].layout.dim));
}

std::string DescribeNonFinite(uint16_t table, const RowGradients& s, const CachedTables& rows, float* largest) {
  const int dim = rows.tables[table].layout.dim;
  for (size_t r = 0; r < s.rows.size(); ++r) {
    for (int j = 0; j < dim; ++j) {
      float sum = 0;
      for (uint32_t o = s.begin[r]; o < s.begin[r + 1]; ++o) sum += s.occurrences[o].scale * s.occurrences[o].grad[j];
      if (std::isfinite(sum)) {
        *largest = std::max(*largest, std::abs(sum));
        continue;
      }
      return "the gradient of table \"" + rows.tables[table].schema.name + "\", id " +
             std::to_string(RowId(rows.cache.Row(s.rows[r]))) + ", is not finite (" + std::to_string(sum) +
             " in column " + std::to_string(j) + "); no table was updated";
    }
  }
  return {};
}

float GradientBound(std::span<const GradientPart> parts, float grad_scale, const CachedTables& rows,
                    const Compute& compute) {
  double bound = 0;
  for (const GradientPart& part : parts) {
    const Lookup& lookup = *part.lookup;
    size_t columns = 0, floats = 0;
    bool weighted_mean = false;
    for (const Feature& f : lookup.features) {
      const size_t dim = static_cast<size_t>(rows.tables[f.table].layout.dim);
      columns = std::max(columns, f.column + dim);
      floats += lookup.bags(f) * dim;
      weighted_mean |= f.pooling == Pooling::kMean && lookup.batch.weights != nullptr;
    }
    if (weighted_mean) return std::numeric_limits<float>::infinity();  // weights that cancel have no bound
    // Where outputs stand one behind the other, any number of floats may be called a sample.
    const bool flat = lookup.batch.bags != nullptr;
    if (flat) columns = 64;
    const size_t samples = flat ? floats / columns : lookup.batch.batch;
    constexpr size_t kSamplesPerUnit = 32;
    const size_t units = (samples + kSamplesPerUnit - 1) / kSamplesPerUnit;
    std::vector<uint32_t> max_bits(static_cast<size_t>(compute.threads->threads()), 0);
    if (flat) max_bits[0] = compute.kernels->max_abs_bits(part.grad + samples * columns, floats - samples * columns);
    compute.threads->ParallelFor(units, [&](size_t u, int thread) {
      const size_t first = u * kSamplesPerUnit, last = std::min(samples, first + kSamplesPerUnit);
      uint32_t bits = 0;
      if (flat || part.stride == columns) {
        bits = compute.kernels->max_abs_bits(part.grad + first * columns, (last - first) * columns);
      } else {
        for (size_t b = first; b < last; ++b) {
          bits = std::max(bits, compute.kernels->max_abs_bits(part.grad + b * part.stride, columns));
        }
      }
      max_bits[static_cast<size_t>(thread)] = std::max(max_bits[static_cast<size_t>(thread)], bits);
    });
    uint32_t bits = *std::max_element(max_bits.begin(), max_bits.end());
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    float largest_weight = 1;
    if (lookup.batch.weights != nullptr) {
      bits = compute.kernels->max_abs_bits(lookup.batch.weights, lookup.batch.num_ids);
      std::memcpy(&largest_weight, &bits, sizeof largest_weight);
    }
    bound += static_cast<double>(largest) * largest_weight * static_cast<double>(lookup.slots.size());
    // What each gradient is multiplied by has to be finite, too, even where the gradient is 0.
    bound = std::max(bound, static_cast<double>(largest_weight));
  }
  return static_cast<float>(bound / grad_scale);
}

}  // namespace damo
