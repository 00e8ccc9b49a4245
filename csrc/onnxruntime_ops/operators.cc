// The operators that exported graphs name, for ONNX Runtime: it runs them instead of the functions of the same names.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "onnxruntime_ops/lookup.h"
#include "onnxruntime_ops/ort_api.h"

namespace damo {
namespace {

constexpr const char* kDomain = "damo_torchrec";

// `message()` is made only where it is thrown.
template <class F>
void Require(bool holds, F message) {
  if (!holds) throw OrtError(ort::ErrorCode::kInvalidArgument, message());
}

std::string ShapeName(const std::vector<int64_t>& shape) {
  std::string name = "(";
  for (const int64_t size : shape) name += (name.size() > 1 ? ", " : "") + std::to_string(size);
  return name + ")";
}

// ONNX's number of it.
std::string TypeName(ort::ElementType type) { return std::to_string(static_cast<int>(type)); }

// What an operator looks up, and its inputs in order.
struct Signature {
  std::string name;
  bool pooled;
  bool weighted;
  bool means;
  bool mean_rows;
  RowDtype dtype;
  std::vector<const char*> inputs;
  std::vector<ort::ElementType> types;

  Signature(bool pooled_bags, bool weighted_ids, bool some_means, bool some_mean_rows, RowDtype row_dtype)
      : pooled(pooled_bags), weighted(weighted_ids), means(some_means), mean_rows(some_mean_rows), dtype(row_dtype) {
    const RowDtypeFacts facts = FactsOf(dtype);
    const std::string bags = std::string(weighted ? "Weighted" : "") + "EmbeddingBag" + (means ? "Mean" : "") + "s";
    name = (pooled ? bags : "EmbeddingRows") + facts.suffix + (mean_rows ? "MeanRows" : "");
    const auto add = [&](const char* input, ort::ElementType type) {
      inputs.push_back(input);
      types.push_back(type);
    };
    for (const char* input : {"values", "lengths"}) add(input, ort::ElementType::kInt64);
    if (weighted) add("weights", ort::ElementType::kFloat);
    add("tables", ort::ElementType::kInt64);
    if (means) add("means", ort::ElementType::kBool);
    if (mean_rows) add("mean_rows", ort::ElementType::kFloat);
    for (const char* input : {"first_bucket", "bucket_mask", "middle_row"}) {
      add(input, ort::ElementType::kInt64);
    }
    add("row_scale", ort::ElementType::kDouble);
    for (const char* input : {"buckets", "keys"}) add(input, ort::ElementType::kInt64);
    add("rows_0", static_cast<ort::ElementType>(facts.onnx_type));  // numbered as in ONNX
    if (facts.scaled) add("scales", ort::ElementType::kFloat);
  }
};

// Inputs of an operator, by name.
class Inputs {
 public:
  explicit Inputs(const Signature& signature) : signature_(signature) {}

  // The input of the operator at `index`.
  void Add(size_t index, Tensor tensor) {
    const char* const name = signature_.inputs[index];
    Require(tensor.type == signature_.types[index], [&] {
      return signature_.name + ": " + name + " must have elements of ONNX's type " + TypeName(signature_.types[index]) +
             ", got " + TypeName(tensor.type);
    });
    tensors_.emplace_back(name, std::move(tensor));
  }

  const Tensor& operator[](std::string_view name) const {
    return std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& tensor) { return tensor.first == name; })
        ->second;
  }

  const Tensor& OfRank(const char* name, size_t rank) const {
    const Tensor& tensor = (*this)[name];
    Require(tensor.shape.size() == rank, [&] {
      return signature_.name + ": " + name + " must have " + std::to_string(rank) + " dimensions, got the shape " +
             ShapeName(tensor.shape);
    });
    return tensor;
  }

  // An input's data.
  template <class T>
  const T* Array(const char* name, const std::vector<int64_t>& shape) const {
    const Tensor& tensor = (*this)[name];
    Require(tensor.shape == shape, [&] {
      return signature_.name + ": " + name + " must have the shape " + ShapeName(shape) + ", got " +
             ShapeName(tensor.shape);
    });
    return tensor.as<T>();
  }

 private:
  const Signature& signature_;
  std::vector<std::pair<std::string_view, Tensor>> tensors_;
};

void CheckLengths(const Signature& signature, const LookupArgs& args) {
  uint64_t total = 0;
  for (size_t bag = 0; bag < args.keys * args.batch && total <= args.num_ids; ++bag) {
    const int64_t length = args.lengths[bag];
    Require(length >= 0, [&] {
      return signature.name + ": lengths must be at least 0, got " + std::to_string(length) + " for bag " +
             std::to_string(bag % args.batch) + " of key " + std::to_string(bag / args.batch);
    });
    total += static_cast<uint64_t>(length);
  }
  Require(total == args.num_ids, [&] {
    return signature.name + ": lengths must sum to the number of values, " + std::to_string(args.num_ids) + ", got " +
           (total > args.num_ids ? "at least " : "") + std::to_string(total);
  });
}

constexpr const char* kDoNotFit = ": the arrays of the row group do not fit together";

// What ids are looked up in.
LookupArgs ReadArrays(const Signature& signature, const Inputs& inputs) {
  LookupArgs args{};
  const int64_t num_keys = inputs.OfRank("tables", 1).shape[0];
  const int64_t num_tables = inputs.OfRank("first_bucket", 1).shape[0];
  const int64_t num_parts = inputs.OfRank("middle_row", 1).shape[0];
  const Tensor& buckets = inputs.OfRank("buckets", 1);
  const Tensor& rows = inputs.OfRank("rows_0", 2);
  const int64_t num_rows = rows.shape[0];
  args.keys = static_cast<size_t>(num_keys);
  args.dim = static_cast<size_t>(rows.shape[1]);
  args.tables = inputs["tables"].as<int64_t>();
  if (signature.means) args.means = inputs.Array<bool>("means", {num_keys});
  if (signature.mean_rows) args.mean_rows = inputs.Array<float>("mean_rows", {num_tables, rows.shape[1]});
  args.hash = {inputs["first_bucket"].as<int64_t>(),
               inputs.Array<int64_t>("bucket_mask", {num_tables}),
               inputs["middle_row"].as<int64_t>(),
               inputs.Array<double>("row_scale", {num_parts}),
               num_parts,
               buckets.as<int64_t>(),
               inputs.Array<int64_t>("keys", {num_rows})};
  args.dtype = signature.dtype;
  args.rows = rows.data;
  if (FactsOf(signature.dtype).scaled) args.scales = inputs.Array<float>("scales", {num_rows});
  Require(FitTogether(args, {num_tables, buckets.shape[0], num_rows}), [&] { return signature.name + kDoNotFit; });
  return args;
}

void ReadRequest(const Signature& signature, const Inputs& inputs, LookupArgs* args) {
  const Tensor& values = inputs.OfRank("values", 1);
  const Tensor& lengths = inputs.OfRank("lengths", 2);
  Require(lengths.shape[0] == static_cast<int64_t>(args->keys), [&] {
    return signature.name + ": lengths must have a row for each of " + std::to_string(args->keys) +
           " keys, got the shape " + ShapeName(lengths.shape);
  });
  args->num_ids = static_cast<size_t>(values.shape[0]);
  args->batch = static_cast<size_t>(lengths.shape[1]);
  args->values = values.as<int64_t>();
  args->lengths = lengths.as<int64_t>();
  if (signature.weighted) args->weights = inputs.Array<float>("weights", {values.shape[0]});
  CheckLengths(signature, *args);
}

template <class Work>
void Run(const Signature& signature, const KernelCall& call, const Work& work) {
  call.Run(work);
  Require(!work.damaged(), [&] { return signature.name + kDoNotFit; });
}

// An operator in a graph. Where its arrays are constants of the graph they are read and checked once.
class Kernel {
 public:
  Kernel(const ort::Api& api, const OrtKernelInfo* info, const Signature& signature)
      : api_(api), signature_(signature), requests_(signature.weighted ? 3 : 2) {
    Inputs arrays(signature);
    for (size_t i = requests_; i < signature.inputs.size(); ++i) {
      std::optional<Tensor> tensor = ConstantInput(api, info, i);
      if (!tensor) return;
      arrays.Add(i, std::move(*tensor));
    }
    constants_ = ReadArrays(signature, arrays);
  }

  const ort::Api& api() const { return api_; }

  void Compute(OrtKernelContext* context) const {
    const KernelCall call(api_, context);
    LookupArgs args =
        constants_ ? *constants_ : ReadArrays(signature_, Read(call, requests_, signature_.inputs.size()));
    ReadRequest(signature_, Read(call, 0, requests_), &args);
    const int64_t dim = static_cast<int64_t>(args.dim);
    if (signature_.pooled) {
      const std::vector<int64_t> shape = {static_cast<int64_t>(args.batch), static_cast<int64_t>(args.keys) * dim};
      Run(signature_, call, PooledLookup(args, call.FloatOutput(0, shape)));
    } else {
      Run(signature_, call, RowLookup(args, call.FloatOutput(0, {static_cast<int64_t>(args.num_ids), dim})));
    }
  }

 private:
  Inputs Read(const KernelCall& call, size_t begin, size_t end) const {
    Inputs inputs(signature_);
    for (size_t i = begin; i < end; ++i) inputs.Add(i, call.Input(i));
    return inputs;
  }

  const ort::Api& api_;
  const Signature& signature_;
  const size_t requests_;  // how many inputs are a request's
  std::optional<LookupArgs> constants_;
};

// An operator as ONNX Runtime wants it.
struct Operator : ort::CustomOp {
  explicit Operator(Signature s) : ort::CustomOp{}, signature(std::move(s)) {
    version = ort::kApiVersion;
    GetName = [](const ort::CustomOp* op) { return Of(op).name.c_str(); };
    GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const ort::CustomOp* op) { return Of(op).types.size(); };
    GetInputType = [](const ort::CustomOp* op, size_t index) { return Of(op).types[index]; };
    GetInputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::InputOutput::kRequired; };
    GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::MemoryType::kDefault; };
    GetOutputTypeCount = [](const ort::CustomOp*) { return size_t{1}; };
    GetOutputType = [](const ort::CustomOp*, size_t) { return ort::ElementType::kFloat; };
    GetOutputCharacteristic = [](const ort::CustomOp*, size_t) { return ort::InputOutput::kRequired; };
    CreateKernelV2 = [](const ort::CustomOp* op, const ort::Api* api, const OrtKernelInfo* info, void** kernel) {
      return ToStatus(*api, [&] { *kernel = new Kernel(*api, info, Of(op)); });
    };
    KernelComputeV2 = [](void* data, OrtKernelContext* context) {
      const Kernel& kernel = *static_cast<const Kernel*>(data);
      return ToStatus(kernel.api(), [&] { kernel.Compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

  static const Signature& Of(const ort::CustomOp* op) { return static_cast<const Operator*>(op)->signature; }

  const Signature signature;
};

const std::vector<std::unique_ptr<Operator>>& Operators() {
  static const std::vector<std::unique_ptr<Operator>>& operators = *[] {
    auto* made = new std::vector<std::unique_ptr<Operator>>;
    for (const RowDtype dtype : kRowDtypes) {
      for (const bool mean_rows : {false, true}) {
        for (const bool weighted : {false, true}) {
          for (const bool means : {false, true}) {
            made->push_back(std::make_unique<Operator>(Signature(true, weighted, means, mean_rows, dtype)));
          }
        }
        made->push_back(std::make_unique<Operator>(Signature(false, false, false, mean_rows, dtype)));
      }
    }
    return made;
  }();
  return operators;
}

// The operators of one runtime, of which a process may have several. Kept for ever, since sessions use it until they
// end.
OrtCustomOpDomain* DomainFor(const ort::Api& api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const ort::Api*, OrtCustomOpDomain*>;
  const std::lock_guard lock(mutex);
  OrtCustomOpDomain*& domain = domains[&api];
  if (domain == nullptr) {
    OrtCustomOpDomain* made = nullptr;
    Check(api, api.CreateCustomOpDomain(kDomain, &made));
    for (const std::unique_ptr<Operator>& op : Operators()) Check(api, api.CustomOpDomain_Add(made, op.get()));
    domain = made;
  }
  return domain;
}

}  // namespace
}  // namespace damo

// What ONNX Runtime calls when it loads the library.
extern "C" [[gnu::visibility("default")]] OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                       const damo::ort::ApiBase* base) {
  const damo::ort::Api* api = base->GetApi(damo::ort::kApiVersion);
  if (api == nullptr) {
    const std::string message =
        std::string("damo_torchrec's operators need ONNX Runtime 1.17 or later, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(damo::ort::ErrorCode::kFail, message.c_str());
  }
  return damo::ToStatus(*api, [&] { damo::Check(*api, api->AddCustomOpDomain(options, damo::DomainFor(*api))); });
}
