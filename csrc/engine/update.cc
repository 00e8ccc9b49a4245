// Updating rows: from the gradient of a collection's output to one update of each row the batch names.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "base/status.h"
#include "engine/scratch.h"
#include "engine/store.h"

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

// Groups by row what `table` gets from all parts, in the order (part, the table's features, sample, position). Takes
// the rows of share `share` of `shares`, so that several threads can work on one table.
void Store::Gather(uint16_t table, size_t share, size_t shares, std::span<const PlacedPart> parts, float grad_scale,
                   Scratch* s) const {
  s->slots.clear();
  s->gathered.clear();
  for (const PlacedPart& part : parts) {
    const Lookup& lookup = *part.lookup;
    for (size_t f = 0; f < lookup.features.size(); ++f) {
      const Feature& feature = lookup.features[f];
      if (feature.table != table) continue;
      const Slot* slots = lookup.slots.data() + lookup.first_slot[f];
      const float* grad = part.grad + part.places[f].offset;
      const size_t stride = part.places[f].stride;
      ForEachOccurrence(lookup, feature, [&](size_t i, size_t bag, float scale) {
        if (shares > 1 && (slots[i] * 0x9E3779B1u >> 16) % shares != share) return;
        s->slots.push_back(slots[i]);
        s->gathered.push_back({grad + bag * stride, scale / grad_scale});
      });
    }
  }
  const size_t n = s->slots.size();
  const size_t row_bytes = tables_[table].layout.row_size();
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
      const char* row = cache_.Row(slot);
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
  s->buffer.resize(2 * static_cast<size_t>(tables_[table].layout.dim));
}

// An upper bound of the absolute values that summing the parts' gradients can give, infinite or NaN if there is none.
float Store::GradientBound(std::span<const GradientPart> parts, float grad_scale) {
  double bound = 0;
  for (const GradientPart& part : parts) {
    const Lookup& lookup = *part.lookup;
    size_t columns = 0, floats = 0;
    bool weighted_mean = false;
    for (const Feature& f : lookup.features) {
      const size_t dim = static_cast<size_t>(tables_[f.table].layout.dim);
      columns = std::max(columns, f.column + dim);
      floats += lookup.bags(f) * dim;
      weighted_mean |= f.pooling == Pooling::kMean && lookup.batch.weights != nullptr;
    }
    if (weighted_mean) return std::numeric_limits<float>::infinity();  // weights that cancel have no bound
    // Of outputs that stand one behind the other, a sample is as much as any.
    const bool flat = lookup.batch.bags != nullptr;
    if (flat) columns = 64;
    const size_t samples = flat ? floats / columns : lookup.batch.batch;
    constexpr size_t kSamplesPerUnit = 32;
    const size_t units = (samples + kSamplesPerUnit - 1) / kSamplesPerUnit;
    std::vector<uint32_t> max_bits(static_cast<size_t>(threads_.threads()), 0);
    if (flat) max_bits[0] = kernels_.max_abs_bits(part.grad + samples * columns, floats - samples * columns);
    threads_.ParallelFor(units, [&](size_t u, int thread) {
      const size_t first = u * kSamplesPerUnit, last = std::min(samples, first + kSamplesPerUnit);
      uint32_t bits = 0;
      if (flat || part.stride == columns) {
        bits = kernels_.max_abs_bits(part.grad + first * columns, (last - first) * columns);
      } else {
        for (size_t b = first; b < last; ++b) {
          bits = std::max(bits, kernels_.max_abs_bits(part.grad + b * part.stride, columns));
        }
      }
      max_bits[static_cast<size_t>(thread)] = std::max(max_bits[static_cast<size_t>(thread)], bits);
    });
    uint32_t bits = *std::max_element(max_bits.begin(), max_bits.end());
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    float largest_weight = 1;
    if (lookup.batch.weights != nullptr) {
      bits = kernels_.max_abs_bits(lookup.batch.weights, lookup.batch.num_ids);
      std::memcpy(&largest_weight, &bits, sizeof largest_weight);
    }
    bound += static_cast<double>(largest) * largest_weight * static_cast<double>(lookup.slots.size());
    // What each gradient is multiplied by has to be finite, too, even where the gradient is 0.
    bound = std::max(bound, static_cast<double>(largest_weight));
  }
  return static_cast<float>(bound / grad_scale);
}

// The first row of `scratch` whose summed gradient is not finite, or an empty string.
std::string Store::DescribeNonFinite(uint16_t table, const Scratch& s) const {
  const int dim = tables_[table].layout.dim;
  for (size_t r = 0; r < s.rows.size(); ++r) {
    for (int j = 0; j < dim; ++j) {
      float sum = 0;
      for (uint32_t o = s.begin[r]; o < s.begin[r + 1]; ++o) sum += s.occurrences[o].scale * s.occurrences[o].grad[j];
      if (std::isfinite(sum)) continue;
      return "the gradient of table \"" + tables_[table].schema.name + "\", id " +
             std::to_string(RowId(cache_.Row(s.rows[r]))) + ", is not finite (" + std::to_string(sum) + " in column " +
             std::to_string(j) + "); no table was updated";
    }
  }
  return {};
}

// Waits until the rows of this update, at most so many of each table, can be kept for a snapshot that is being written.
void Store::AwaitReserve(std::span<const size_t> ids_of_table, Lock& lock) {
  if (!snapshot_->keeps()) return;
  size_t bytes = 0;
  for (size_t t = 0; t < tables_.size(); ++t) {
    bytes += ids_of_table[t] * (tables_[t].layout.payload_size() + sizeof(RowWrite));
  }
  progress_.wait(lock.data, [&] { return snapshot_->HasRoom(bytes); });
}

bool Store::Backward(std::span<const GradientPart> parts, float grad_scale, NonFinite policy) {
  Lock lock = Acquire();
  RaiseTrimError();
  if (options_.read_only)
    throw Error(ErrorCode::kInvalidArgument, "the store was opened read-only: rows cannot be updated");
  if (!(std::abs(grad_scale) > 0) || !std::isfinite(grad_scale)) {
    throw Error(ErrorCode::kInvalidArgument, "grad_scale must be finite and not 0, got " + std::to_string(grad_scale));
  }
  cache_.BeginOperation();
  std::vector<Lookup*> lookups;
  std::vector<PlacedPart> placed;
  bool slots_valid = true;
  for (const GradientPart& part : parts) {
    lookups.push_back(part.lookup);
    placed.push_back({part.lookup, part.grad, PlacesOf(*part.lookup, part.stride)});
    slots_valid &= part.lookup->epoch == cache_.epoch();
  }
  if (!slots_valid) ResolveAll(lookups, lock);

  struct Work {
    uint16_t table;
    size_t share;
    size_t shares;
    OptimizerStep step;
  };
  std::vector<size_t> ids_of_table(tables_.size(), 0);
  std::vector<bool> involved(tables_.size(), false);
  size_t total = 0;
  for (const Lookup* lookup : lookups) {
    for (const Feature& feature : lookup->features) {
      if (feature.unseen != UnseenRows::kInitial) {
        throw Error(ErrorCode::kInvalidArgument, "a lookup that reads unseen rows as zeros cannot update rows");
      }
      involved[feature.table] = true;
      ids_of_table[feature.table] += lookup->ids_of(feature);
      total += lookup->ids_of(feature);
    }
  }
  const size_t threads = static_cast<size_t>(threads_.threads());
  std::vector<Work> work;
  for (size_t t = 0; t < tables_.size(); ++t) {
    if (!involved[t]) continue;
    const TableSchema& schema = tables_[t].schema;
    if (schema.iter == UINT32_MAX) {
      throw Error(ErrorCode::kInvalidArgument,
                  "table \"" + schema.name + "\" has had 4294967295 updates, the most there can be");
    }
    const size_t shares = ids_of_table[t] * 2 * threads > total && threads > 1 ? threads : 1;
    for (size_t share = 0; share < shares; ++share) {
      work.push_back({static_cast<uint16_t>(t), share, shares, MakeStep(schema.optimizer, schema.iter + 1)});
    }
  }
  // Large ones first, so that the threads finish together.
  std::stable_sort(work.begin(), work.end(), [&](const Work& a, const Work& b) {
    return ids_of_table[a.table] / a.shares > ids_of_table[b.table] / b.shares;
  });

  // All that can fail happens before the first row changes. Half of the largest float leaves room for rounding.
  if (!(std::abs(GradientBound(parts, grad_scale)) < std::numeric_limits<float>::max() / 2)) {
    std::vector<std::string> faults(work.size());
    threads_.ParallelFor(work.size(), [&](size_t w, int thread) {
      Scratch* scratch = scratch_[static_cast<size_t>(thread)].get();
      Gather(work[w].table, work[w].share, work[w].shares, placed, grad_scale, scratch);
      faults[w] = DescribeNonFinite(work[w].table, *scratch);
    });
    for (const std::string& fault : faults) {
      if (fault.empty()) continue;
      if (policy == NonFinite::kSkip) return false;
      throw Error(ErrorCode::kNonFinite, fault);
    }
  }
  AwaitReserve(ids_of_table, lock);
  const bool keeps = snapshot_->keeps();
  std::vector<std::atomic<int64_t>> created(tables_.size());
  threads_.ParallelFor(work.size(), [&](size_t w, int thread) {
    Scratch* s = scratch_[static_cast<size_t>(thread)].get();
    Gather(work[w].table, work[w].share, work[w].shares, placed, grad_scale, s);
    const Table& table = tables_[work[w].table];
    if (keeps) snapshot_->Keep(s->rows);
    for (Slot slot : s->rows) cache_.MarkSegmentDirty(slot);
    const size_t n = kernels_.apply[static_cast<size_t>(table.schema.optimizer.kind)](
        {cache_.arena(), s->rows.data(), s->begin.data(), s->occurrences.data(), s->rows.size(), table.layout.dim,
         work[w].step, table.schema.iter + 1, s->buffer.data(), table.layout.weight_type,
         table.schema.initializer.stream_key});
    created[work[w].table].fetch_add(static_cast<int64_t>(n), std::memory_order_relaxed);
  });
  for (size_t t = 0; t < tables_.size(); ++t) {
    tables_[t].schema.iter += involved[t] ? 1 : 0;
    cache_.SetIter(static_cast<uint16_t>(t), tables_[t].schema.iter);
    tables_[t].schema.rows += created[t].load();
  }
  Trim(lock);
  write_back_->Wake();
  return true;
}

void Store::WeightGradient(Lookup* lookup, const float* grad, size_t stride, float* weight_grad) {
  Lock lock = Acquire();
  cache_.BeginOperation();
  if (lookup->epoch != cache_.epoch()) ResolveAll(std::span(&lookup, 1), lock);
  std::fill_n(weight_grad, lookup->batch.num_ids, 0.0f);
  // Features that share a key add to the same weights: one feature after the other.
  std::vector<float> of_feature;
  const std::vector<Place> places = PlacesOf(*lookup, stride);
  for (size_t f = 0; f < lookup->features.size(); ++f) {
    const Feature& feature = lookup->features[f];
    of_feature.assign(lookup->ids_of(feature), 0);
    const Unit all{lookup, &feature, 0, lookup->bags(feature), 0};
    kernels_.weight_grad({BagsOf(all), grad + places[f].offset, places[f].stride, of_feature.data()});
    float* to = weight_grad + lookup->bag_offsets(feature)[0];
    for (size_t i = 0; i < of_feature.size(); ++i) to[i] += of_feature[i];
  }
}

}  // namespace damo
