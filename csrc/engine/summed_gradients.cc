#include "engine/summed_gradients.h"

#include <algorithm>
#include <bit>

namespace damo {
namespace {

size_t HashTableSize(size_t rows) { return std::bit_ceil(2 * rows + 1); }

// Where the arrays of a share of `rows` rows are, the most aligned first.
struct Arrays {
  Arrays(char* memory, size_t rows, size_t dim)
      : ids(reinterpret_cast<int64_t*>(memory)),
        occurrences(reinterpret_cast<Occurrence*>(ids + rows)),
        sums(reinterpret_cast<float*>(occurrences + rows)),
        buffer(sums + rows * dim),
        slots(reinterpret_cast<Slot*>(buffer + 2 * dim)),
        begin(slots + rows),
        ids_of_row(begin + rows + 1),
        hash_table(ids_of_row + rows) {}

  int64_t* ids;
  Occurrence* occurrences;  // each row's sum, as the only one
  float* sums;              // (rows, dim)
  float* buffer;
  Slot* slots;
  uint32_t* begin;
  uint32_t* ids_of_row;
  uint32_t* hash_table;  // row + 1, or 0
};

}  // namespace

size_t SummedGradients::BytesFor(size_t rows, int dim) {
  const size_t floats = (rows + 2) * static_cast<size_t>(dim);
  return rows * (sizeof(int64_t) + sizeof(Occurrence) + sizeof(Slot)) + floats * sizeof(float) +
         (2 * rows + 1 + HashTableSize(rows)) * sizeof(uint32_t);
}

RowGradients SummedGradients::Gather(const TableShare& share, const Gradients& gradients, const CachedTables& rows,
                                     size_t most_rows) {
  const RowCache* cache = &rows.cache;
  const size_t dim = static_cast<size_t>(rows.tables[share.table].layout.dim);
  const Arrays to(static_cast<char*>(pages_.get()), most_rows, dim);
  const size_t table_size = HashTableSize(most_rows);
  std::fill_n(to.hash_table, table_size, 0);
  uint32_t n = 0;
  const auto add = [&](int64_t id, uint32_t tag, const float* grad, float scale) {
    size_t h = (uint64_t{tag * 0x9E3779B1u} * table_size) >> 32;
    while (to.hash_table[h] != 0 && to.ids[to.hash_table[h] - 1] != id) h = (h + 1) & (table_size - 1);
    if (to.hash_table[h] != 0) {
      ++to.ids_of_row[to.hash_table[h] - 1];
      float* __restrict sum = to.sums + (to.hash_table[h] - 1) * dim;
      for (size_t j = 0; j < dim; ++j) sum[j] += scale * grad[j];
      return;
    }
    float* __restrict sum = to.sums + n * dim;
    for (size_t j = 0; j < dim; ++j) sum[j] = scale * grad[j];
    to.ids[n] = id;
    to.slots[n] = cache->Find(tag, share.table, id);
    to.occurrences[n] = {sum, 1};
    to.begin[n] = n;
    to.ids_of_row[n] = 1;
    to.hash_table[h] = ++n;
  };
  for (const PlacedGradient& part : gradients.parts) {
    const Lookup& lookup = *part.lookup;
    for (size_t f = 0; f < lookup.features.size(); ++f) {
      const Feature& feature = lookup.features[f];
      if (feature.table != share.table) continue;
      const int64_t* ids = lookup.batch.ids + lookup.bag_offsets(feature)[0];
      const float* grad = part.grad + part.places[f].offset;
      const size_t stride = part.places[f].stride;
      ForEachOccurrence(lookup, feature, [&](size_t i, size_t bag, float scale) {
        const uint32_t tag = HashTag(share.table, ids[i]);
        if (ShareOf(tag, share.shares) == share.share) {
          add(ids[i], tag, grad + bag * stride, scale / gradients.grad_scale);
        }
      });
    }
  }
  to.begin[n] = n;
  return {{to.slots, n}, to.begin, to.occurrences, to.buffer, to.ids_of_row};
}

}  // namespace damo
