// Calls of a store with any ids, lengths, weights and numbers of bags: done, or refused before a row changes.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/status.h"
#include "engine/open.h"
#include "engine/store.h"
#include "fuzz_input.h"

namespace {

using damo::fuzz::Input;
using damo::fuzz::Require;

constexpr size_t kMostBags = 1000;
constexpr int kDims[] = {1, 3, 16};

// With a table of each of these dims, and little room.
damo::Store* OpenedStore() {
  static const std::unique_ptr<damo::Store> store = [] {
    damo::StoreOptions options;
    options.memory_budget = damo::kLeastMemoryBudget;
    options.cache_bytes = size_t{1} << 20;
    auto opened = damo::OpenStore("", /*create=*/true, /*in_memory=*/true, options, {});
    for (const int dim : kDims) {
      damo::TableSchema schema;
      schema.name = std::to_string(dim);
      schema.number = static_cast<uint32_t>(dim);
      schema.dim = dim;
      schema.weight_type = dim == 3 ? damo::WeightType::kFloat16 : damo::WeightType::kFloat32;
      schema.optimizer.kind = damo::OptimizerNamed("ADAM");
      opened->OpenTable(schema);
    }
    return opened;
  }();
  return store.get();
}

template <class F>
void Tried(F call) {
  try {
    call();
  } catch (const damo::Error& error) {
    Require(error.code() == damo::ErrorCode::kInvalidArgument || error.code() == damo::ErrorCode::kNonFinite);
  }
}

void Step(Input* input) {
  const size_t keys = input->UpTo(3), batch = input->UpTo(5);
  const bool differ = input->UpTo(1), weighted = input->UpTo(1);
  const std::vector<int64_t> bags = input->Numbers(keys);
  size_t total = 0;
  bool in_range = true;
  for (const int64_t n : bags) {
    const size_t of_key = differ ? static_cast<size_t>(n) : batch;
    in_range &= of_key <= kMostBags;
    if (in_range) total += of_key;
  }
  // Lengths are one for each bag; of numbers that arrays cannot have, those that are refused before lengths are read.
  const std::vector<int64_t> lengths = input->Numbers(in_range ? total : 0);
  const std::vector<int64_t> ids = input->Numbers(input->UpTo(60));
  const std::vector<float> weights = input->Array<float>(ids.size());
  std::vector<damo::Feature> features;
  size_t columns = 0;
  for (size_t n = keys == 0 ? 0 : input->UpTo(4); n > 0; --n) {
    const auto table = static_cast<uint16_t>(input->UpTo(2));
    const damo::Pooling pooling = input->UpTo(1) ? damo::Pooling::kMean : damo::Pooling::kSum;
    const damo::UnseenRows unseen = input->UpTo(3) ? damo::UnseenRows::kInitial : damo::UnseenRows::kZeros;
    features.push_back({table, pooling, unseen, input->UpTo(static_cast<uint8_t>(keys - 1)), columns});
    columns += static_cast<size_t>(kDims[table]);
  }
  for (const int64_t n : bags) {
    if (differ && static_cast<size_t>(n) > kMostBags && static_cast<size_t>(n) <= size_t{1} << 40) return;
  }
  damo::Store* const store = OpenedStore();
  Tried([&] {
    const auto lookup = damo::MakeLookup(features, {ids.data(), lengths.data(), weighted ? weights.data() : nullptr,
                                                    ids.size(), keys, batch, differ ? bags.data() : nullptr});
    Require(in_range);
    size_t floats = 0;
    for (const damo::Feature& feature : features) {
      floats += lookup->bags(feature) * static_cast<size_t>(kDims[feature.table]);
    }
    std::vector<float> out(differ ? floats : batch * columns), grad = input->Array<float>(out.size());
    store->Prefetch(lookup.get());
    store->Forward(lookup.get(), out.data(), columns);
    const damo::GradientPart part{lookup.get(), grad.data(), columns};
    store->Backward({&part, 1}, 1, damo::NonFinite::kSkip);
    if (!weighted) return;
    std::vector<float> weight_grad(ids.size());
    store->WeightGradient(lookup.get(), grad.data(), columns, weight_grad.data());
  });
}

void ByIds(Input* input) {
  damo::Store* const store = OpenedStore();
  const auto table = static_cast<uint16_t>(input->UpTo(2));
  const size_t call = input->UpTo(3);
  const std::vector<int64_t> ids = input->Numbers(input->UpTo(100));
  std::vector<float> weights = input->Array<float>(ids.size() * static_cast<size_t>(kDims[table]));
  std::vector<uint8_t> found(ids.size());
  Tried([&] {
    if (call == 0) store->Get(table, ids, damo::UnseenRows::kInitial, weights.data());
    if (call == 1) store->Set(table, ids, weights.data());
    if (call == 2) store->Delete(table, ids);
    if (call == 3) store->Contains(table, ids, found.data());
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  for (int calls = 0; calls < 8 && input.left() > 0; ++calls) {
    if (input.UpTo(1)) {
      Step(&input);
    } else {
      ByIds(&input);
    }
  }
  return 0;
}
