#include "engine/gradients.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace damo {
namespace {

constexpr size_t kLine = 64;

// Another hash than the one of the hash table, which a share should fill evenly.
size_t ShareOf(Slot slot, size_t shares) { return (uint64_t{slot * 0x85EBCA77u} * shares) >> 32; }

size_t HashTableSize(size_t rows) { return std::max<size_t>(16, std::bit_ceil(2 * rows)); }

}  // namespace

std::vector<size_t> GroupedGradients::CountIds(uint16_t table, size_t shares, const Gradients& gradients) {
  std::vector<size_t> ids(shares, 0);
  for (const PlacedGradient& part : gradients.parts) {
    const Lookup& lookup = *part.lookup;
    for (size_t f = 0; f < lookup.features.size(); ++f) {
      if (lookup.features[f].table != table) continue;
      const Slot* slots = lookup.slots.data() + lookup.first_slot[f];
      const size_t n = lookup.ids_of(lookup.features[f]);
      if (shares == 1) ids[0] += n;
      for (size_t i = 0; i < n && shares > 1; ++i) ++ids[ShareOf(slots[i], shares)];
    }
  }
  return ids;
}

void GroupedGradients::Reserve(size_t ids, int dim) {
  const auto reserve = [](auto* vector, size_t size) { vector->resize(std::max(vector->size(), size)); };
  reserve(&rows_, ids);
  reserve(&begin_, ids + 1);
  reserve(&occurrences_, ids);
  reserve(&slots_, ids + 1);
  reserve(&gathered_, ids + 1);
  reserve(&row_of_, ids);
  reserve(&buffer_, 2 * static_cast<size_t>(dim));
  hash_table_.reserve(HashTableSize(ids));
}

size_t GroupedGradients::memory_bytes() const {
  const auto bytes = [](const auto& vector) { return vector.capacity() * sizeof(vector[0]); };
  return bytes(rows_) + bytes(begin_) + bytes(occurrences_) + bytes(slots_) + bytes(gathered_) + bytes(row_of_) +
         bytes(hash_table_) + bytes(buffer_);
}

RowGradients GroupedGradients::Gather(const TableShare& share, const Gradients& gradients, const CachedTables& rows) {
  size_t n = 0;
  for (const PlacedGradient& part : gradients.parts) {
    const Lookup& lookup = *part.lookup;
    for (size_t f = 0; f < lookup.features.size(); ++f) {
      const Feature& feature = lookup.features[f];
      if (feature.table != share.table) continue;
      const Slot* slots = lookup.slots.data() + lookup.first_slot[f];
      const float* grad = part.grad + part.places[f].offset;
      const size_t stride = part.places[f].stride;
      // Which share an id is in is as good as random: it is written in any case, and only counted where it belongs
      // here.
      ForEachOccurrence(lookup, feature, [&](size_t i, size_t bag, float scale) {
        slots_[n] = slots[i];
        gathered_[n] = {grad + bag * stride, scale / gradients.grad_scale};
        n += ShareOf(slots[i], share.shares) == share.share ? 1 : 0;
      });
    }
  }
  const RowCache& cache = rows.cache;
  const RowLayout& layout = rows.tables[share.table].layout;
  const size_t table_size = HashTableSize(n);
  hash_table_.assign(table_size, 0);
  uint32_t num_rows = 0;
  for (size_t i = 0; i < n; ++i) {
    const Slot slot = slots_[i];
    size_t h = (uint64_t{slot * 0x9E3779B1u} * table_size) >> 32;
    while (hash_table_[h] != 0 && rows_[hash_table_[h] - 1] != slot) h = h + 1 == table_size ? 0 : h + 1;
    if (hash_table_[h] == 0) {
      const char* row = cache.Row(slot);
      for (size_t offset = 0; offset < layout.row_size(); offset += kLine) __builtin_prefetch(row + offset, 1);
      rows_[num_rows] = slot;
      begin_[++num_rows] = 0;
      hash_table_[h] = num_rows;
    }
    row_of_[i] = hash_table_[h] - 1;
    ++begin_[hash_table_[h]];
  }
  begin_[0] = 0;
  for (size_t r = 1; r <= num_rows; ++r) begin_[r] += begin_[r - 1];
  // Placing shifts begin[r] to the end of row r, which is where row r + 1 begins.
  for (size_t i = 0; i < n; ++i) occurrences_[begin_[row_of_[i]]++] = gathered_[i];
  for (size_t r = num_rows; r > 0; --r) begin_[r] = begin_[r - 1];
  begin_[0] = 0;
  return {{rows_.data(), num_rows}, begin_.data(), occurrences_.data(), buffer_.data()};
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
    bound += static_cast<double>(largest) * largest_weight * static_cast<double>(lookup.num_slots);
    // What each gradient is multiplied by has to be finite, too, even where the gradient is 0.
    bound = std::max(bound, static_cast<double>(largest_weight));
  }
  return static_cast<float>(bound / grad_scale);
}

}  // namespace damo
