// The arrays of an exported graph, whatever they hold: refused, or looked up in without leaving them.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "fuzz_input.h"
#include "onnxruntime_ops/lookup.h"

namespace {

using damo::fuzz::Input;

// Around what a row group of so many rows may have, and sometimes anything.
double TakeScale(Input* input, int64_t rows) {
  const auto first = input->Take<int8_t>();
  if (first < -100) return input->Take<double>();
  return static_cast<double>(rows + first % 3) * 0x1p-64;
}

template <class Lookup>
void Do(const damo::LookupArgs& args, size_t floats) {
  std::vector<float> out(floats);
  const Lookup lookup(args, out.data());
  for (size_t part = 0; part < lookup.parts(); ++part) lookup.Do(part);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const damo::RowDtype dtype = damo::kRowDtypes[input.UpTo(damo::kRowDtypes.size() - 1)];
  const damo::RowDtypeFacts facts = damo::FactsOf(dtype);
  const bool weighted = input.UpTo(1), with_means = input.UpTo(1);
  const size_t keys = input.UpTo(3), batch = input.UpTo(3), dim = input.UpTo(9);
  const size_t tables = input.UpTo(3), parts = input.UpTo(3), buckets = input.UpTo(9), rows = input.UpTo(9);

  const std::vector<int64_t> key_tables = input.Numbers(keys), first_bucket = input.Numbers(tables);
  const std::vector<int64_t> bucket_mask = input.Numbers(tables), middle_row = input.Numbers(parts);
  std::vector<double> row_scale(parts);
  for (double& scale : row_scale) scale = TakeScale(&input, static_cast<int64_t>(rows));
  const std::vector<int64_t> bucket_values = input.Numbers(buckets), row_keys = input.Numbers(rows);
  const std::unique_ptr<bool[]> means(new bool[keys]);
  for (size_t key = 0; key < keys; ++key) means[key] = input.UpTo(1);
  std::vector<int64_t> lengths(keys * batch);
  size_t ids = 0;
  for (int64_t& length : lengths) ids += static_cast<size_t>(length = static_cast<int64_t>(input.UpTo(40)));
  const std::vector<int64_t> values = input.Numbers(ids);
  const std::vector<float> weights = input.Array<float>(ids), scales = input.Array<float>(rows);
  const std::vector<char> stored = input.Array<char>(rows * dim * facts.weight_bytes);
  const std::vector<float> mean_rows = input.Array<float>(tables * dim);

  damo::LookupArgs args{};
  args.values = values.data();
  args.lengths = lengths.data();
  args.weights = weighted ? weights.data() : nullptr;
  args.tables = key_tables.data();
  args.means = with_means ? means.get() : nullptr;
  args.num_ids = ids;
  args.keys = keys;
  args.batch = batch;
  args.hash = {first_bucket.data(),         bucket_mask.data(),   middle_row.data(), row_scale.data(),
               static_cast<int64_t>(parts), bucket_values.data(), row_keys.data()};
  args.dtype = dtype;
  args.rows = stored.data();
  args.scales = scales.data();
  args.mean_rows = input.UpTo(1) ? mean_rows.data() : nullptr;
  args.dim = dim;
  if (!damo::FitTogether(args,
                         {static_cast<int64_t>(tables), static_cast<int64_t>(buckets), static_cast<int64_t>(rows)})) {
    return 0;
  }
  Do<damo::PooledLookup>(args, batch * keys * dim);
  Do<damo::RowLookup>(args, ids * dim);
  return 0;
}
