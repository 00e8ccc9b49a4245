#include "onnxruntime_ops/lookup.h"

#include <algorithm>

namespace damo {
namespace {

// How many bags and ids a part of a pooled lookup has: enough that a thread is worth waking.
constexpr size_t kWorkPerPart = 1024;

// Row i. `buffer` has room for a row.
template <class Dtype>
typename Dtype::Row ReadRow(const LookupArgs& args, size_t i, float* buffer) {
  const char* stored = static_cast<const char*>(args.rows) + i * args.dim * Dtype::kWeightBytes;
  return {stored, args.dim, Dtype::kScaled ? args.scales[i] : 1.0f, buffer};
}

// Calls f with row i, or for row 0, that of ids without one, with what those of `table` read.
template <class Dtype, class F>
void WithRow(const LookupArgs& args, size_t i, int64_t table, float* buffer, F f) {
  if (i == 0 && args.mean_rows != nullptr) {
    f(args.mean_rows + static_cast<size_t>(table) * args.dim);
  } else {
    f(ReadRow<Dtype>(args, i, buffer));
  }
}

std::vector<int64_t> KeyEnds(const LookupArgs& args) {
  std::vector<int64_t> ends(args.keys);
  int64_t end = 0;
  for (size_t key = 0; key < args.keys; ++key) {
    const int64_t* lengths = args.lengths + key * args.batch;
    for (size_t bag = 0; bag < args.batch; ++bag) end += lengths[bag];
    ends[key] = end;
  }
  return ends;
}

std::vector<BagRange> Divide(const LookupArgs& args) {
  std::vector<BagRange> ranges;
  BagRange range{0, 0, 0, 0, 0};
  for (size_t key = 0; key < args.keys; ++key) {
    for (size_t bag = 0; bag < args.batch; ++bag) {
      if (range.bags + range.ids >= kWorkPerPart) {
        ranges.push_back(range);
        range = {key, bag, 0, range.first_id + range.ids, 0};
      }
      ++range.bags;
      range.ids += static_cast<size_t>(args.lengths[key * args.batch + bag]);
    }
  }
  if (range.bags > 0) ranges.push_back(range);
  return ranges;
}

// Adds the next `length` rows, of `table`, times their weights, to `out`, which begins as zeros; returns the sum of
// weights.
template <class Dtype>
float AddRows(const LookupArgs& args, RowsOfIds* rows, int64_t table, size_t first_id, size_t length, float* buffer,
              float* __restrict out) {
  const size_t dim = args.dim;
  if (length == 1 && args.weights == nullptr) {
    WithRow<Dtype>(args, rows->Next(), table, buffer, [&](const auto& row) {
      for (size_t j = 0; j < dim; ++j) out[j] = row[j];
    });
    return 1;
  }
  std::fill_n(out, dim, 0.0f);
  if (args.weights == nullptr) {
    for (size_t i = 0; i < length; ++i) {
      WithRow<Dtype>(args, rows->Next(), table, buffer, [&](const auto& row) {
        for (size_t j = 0; j < dim; ++j) out[j] += row[j];
      });
    }
    return static_cast<float>(length);
  }
  float total = 0;
  for (size_t i = 0; i < length; ++i) {
    const float weight = args.weights[first_id + i];
    WithRow<Dtype>(args, rows->Next(), table, buffer, [&](const auto& row) {
      for (size_t j = 0; j < dim; ++j) out[j] += weight * row[j];
    });
    total += weight;
  }
  return total;
}

// Returns whether it found the group damaged.
template <class Dtype>
bool PoolRange(const LookupArgs& args, const RequestIds& request, const BagRange& range, float* out) {
  RowsOfIds rows(args.hash, request, range.first_id, range.first_id + range.ids, range.key,
                 static_cast<const char*>(args.rows), args.dim * Dtype::kWeightBytes);
  std::vector<float> buffer(args.dim);
  size_t id = range.first_id;
  size_t key = range.key;
  size_t bag = range.first_bag;
  for (size_t i = 0; i < range.bags; ++i, ++bag) {
    if (bag == args.batch) {
      bag = 0;
      ++key;
    }
    const size_t length = static_cast<size_t>(args.lengths[key * args.batch + bag]);
    float* sum = out + (bag * args.keys + key) * args.dim;
    const float total = AddRows<Dtype>(args, &rows, args.tables[key], id, length, buffer.data(), sum);
    id += length;
    if (args.means != nullptr && args.means[key]) {
      for (size_t j = 0; j < args.dim; ++j) sum[j] = total == 0 ? 0 : sum[j] / total;
    }
  }
  return rows.damaged();
}

}  // namespace

bool FitTogether(const LookupArgs& args, const RowGroupSizes& sizes) {
  const RowGroupHash& hash = args.hash;
  const auto inside = [](int64_t first, int64_t n, int64_t size) {
    return n >= 1 && n <= size && first >= 0 && first <= size - n;
  };
  bool fit = sizes.rows >= 1 && hash.num_parts >= 1;
  for (int64_t table = 0; table < sizes.tables; ++table) {
    const int64_t mask = hash.bucket_mask[table];
    fit &= mask < sizes.buckets && inside(hash.first_bucket[table], mask + 1, sizes.buckets);
  }
  for (int64_t part = 0; part < hash.num_parts; ++part) {
    const double scale = hash.row_scale[part];
    const bool sound = scale > 0 && scale <= static_cast<double>(sizes.rows) * 0x1p-64;
    const int64_t either_side = sound ? static_cast<int64_t>(scale * 0x1p63) : 0;
    const int64_t middle = hash.middle_row[part];
    fit &= sound && either_side <= middle && middle < sizes.rows - either_side;
  }
  for (size_t key = 0; key < args.keys; ++key) fit &= args.tables[key] >= 0 && args.tables[key] < sizes.tables;
  return fit;
}

PooledLookup::PooledLookup(const LookupArgs& args, float* out)
    : args_(args), out_(out), key_end_(KeyEnds(args)), ranges_(Divide(args)) {}

void PooledLookup::Do(size_t part) const {
  const RequestIds request{args_.values, key_end_.data(), args_.tables};
  WithRowDtype(args_.dtype, [&](auto dtype) {
    if (PoolRange<decltype(dtype)>(args_, request, ranges_[part], out_)) damaged_ = true;
  });
}

RowLookup::RowLookup(const LookupArgs& args, float* out) : args_(args), out_(out), key_end_(KeyEnds(args)) {}

void RowLookup::Do(size_t part) const {
  const size_t begin = part * kIdsPerPart;
  const size_t end = std::min(begin + kIdsPerPart, args_.num_ids);
  const RequestIds request{args_.values, key_end_.data(), args_.tables};
  WithRowDtype(args_.dtype, [&](auto dtype) {
    using Dtype = decltype(dtype);
    RowsOfIds rows(args_.hash, request, begin, end, 0, static_cast<const char*>(args_.rows),
                   args_.dim * Dtype::kWeightBytes);
    std::vector<float> buffer(args_.dim);
    size_t key = 0;
    for (size_t i = begin; i < end; ++i) {
      while (static_cast<int64_t>(i) >= key_end_[key]) ++key;
      float* __restrict out = out_ + i * args_.dim;
      WithRow<Dtype>(args_, rows.Next(), args_.tables[key], buffer.data(), [&](const auto& row) {
        for (size_t j = 0; j < args_.dim; ++j) out[j] = row[j];
      });
    }
    if (rows.damaged()) damaged_ = true;
  });
}

}  // namespace damo
