// The operators that exported graphs name, for ONNX Runtime: it runs them instead of the functions of the same names.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lookup.h"
#include "ort_api.h"

namespace damo {
namespace {

constexpr const char* kDomain = "damo_torchrec";

// `message()` is made only where it is thrown.
template <class F>
void Require(bool holds, F message) {
  if (!holds) throw OrtError(ORT_INVALID_ARGUMENT, message());
}

std::string ShapeName(const std::vector<int64_t>& shape) {
  std::string name = "(";
  for (const int64_t size : shape) name += (name.size() > 1 ? ", " : "") + std::to_string(size);
  return name + ")";
}

// What an operator looks up, and its inputs in order.
struct Signature {
  std::string name;
  bool pooled;
  bool weighted;
  bool means;
  RowFormat format;
  std::vector<const char*> inputs;
  std::vector<ONNXTensorElementDataType> types;

  Signature(bool pooled_bags, bool weighted_ids, bool some_means, RowFormat row_format)
      : pooled(pooled_bags), weighted(weighted_ids), means(some_means), format(row_format) {
    constexpr std::array<const char*, 3> kFormats = {"", "Float16", "Int8"};
    constexpr std::array kRowTypes = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
                                      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8};
    const std::string bags = std::string(weighted ? "Weighted" : "") + "EmbeddingBag" + (means ? "Mean" : "") + "s";
    name = (pooled ? bags : "EmbeddingRows") + kFormats[static_cast<size_t>(format)];
    const auto add = [&](const char* input, ONNXTensorElementDataType type) {
      inputs.push_back(input);
      types.push_back(type);
    };
    for (const char* input : {"values", "lengths"}) add(input, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    if (weighted) add("weights", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    add("tables", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    if (means) add("means", ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL);
    for (const char* input : {"first_part", "num_parts", "first_bucket", "num_buckets", "first_row", "num_rows"}) {
      add(input, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    }
    add("pilots", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16);
    add("keys", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    add("rows_0", kRowTypes[static_cast<size_t>(format)]);
    if (format == RowFormat::kInt8) add("scales", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  }
};

// The inputs of a call, by name.
class Inputs {
 public:
  Inputs(const Signature& signature, const KernelCall& call) : signature_(signature) {
    for (size_t i = 0; i < signature.inputs.size(); ++i) tensors_.push_back(call.Input(i));
  }

  const Tensor& operator[](std::string_view name) const {
    const auto found = std::find(signature_.inputs.begin(), signature_.inputs.end(), name);
    return tensors_[static_cast<size_t>(found - signature_.inputs.begin())];
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
  std::vector<Tensor> tensors_;
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

// That every row which the hash can name is there.
void CheckHash(const Signature& signature, const RowGroupHash& hash, const LookupArgs& args, int64_t num_tables,
               int64_t num_parts, int64_t num_pilots, int64_t num_rows) {
  const auto inside = [](int64_t first, int64_t n, int64_t size) {
    return first >= 0 && n >= 1 && n <= 0xFFFFFFFF && first <= size - n;
  };
  bool holds = num_rows >= 1;
  for (int64_t table = 0; table < num_tables; ++table) {
    holds &= inside(hash.first_part[table], hash.num_parts[table], num_parts);
  }
  for (int64_t part = 0; part < num_parts; ++part) {
    holds &= inside(hash.first_bucket[part], hash.num_buckets[part], num_pilots);
    holds &= inside(hash.first_row[part], hash.num_rows[part], num_rows);
  }
  for (size_t key = 0; key < args.keys; ++key) holds &= args.tables[key] >= 0 && args.tables[key] < num_tables;
  Require(holds, [&] { return signature.name + ": the arrays of the row group do not fit together"; });
}

LookupArgs ReadArgs(const Signature& signature, const Inputs& inputs) {
  LookupArgs args{};
  const auto rank = [&](const char* name, size_t expected) {
    const Tensor& tensor = inputs[name];
    Require(tensor.shape.size() == expected, [&] {
      return signature.name + ": " + name + " must have " + std::to_string(expected) + " dimensions, got the shape " +
             ShapeName(tensor.shape);
    });
    return tensor.shape;
  };
  const int64_t num_ids = rank("values", 1)[0];
  const std::vector<int64_t> lengths = rank("lengths", 2);
  const int64_t num_tables = rank("first_part", 1)[0];
  const int64_t num_parts = rank("first_bucket", 1)[0];
  const int64_t num_pilots = rank("pilots", 1)[0];
  const std::vector<int64_t> rows = rank("rows_0", 2);
  args.num_ids = static_cast<size_t>(num_ids);
  args.keys = static_cast<size_t>(lengths[0]);
  args.batch = static_cast<size_t>(lengths[1]);
  args.dim = static_cast<size_t>(rows[1]);
  args.values = inputs["values"].as<int64_t>();
  args.lengths = inputs["lengths"].as<int64_t>();
  if (signature.weighted) args.weights = inputs.Array<float>("weights", {num_ids});
  args.tables = inputs.Array<int64_t>("tables", {lengths[0]});
  if (signature.means) args.means = inputs.Array<bool>("means", {lengths[0]});
  args.hash = {inputs.Array<int64_t>("first_part", {num_tables}),
               inputs.Array<int64_t>("num_parts", {num_tables}),
               inputs.Array<int64_t>("first_bucket", {num_parts}),
               inputs.Array<int64_t>("num_buckets", {num_parts}),
               inputs.Array<int64_t>("first_row", {num_parts}),
               inputs.Array<int64_t>("num_rows", {num_parts}),
               inputs["pilots"].as<uint16_t>(),
               inputs.Array<int64_t>("keys", {rows[0]})};
  args.format = signature.format;
  args.rows = inputs["rows_0"].data;
  if (signature.format == RowFormat::kInt8) args.scales = inputs.Array<float>("scales", {rows[0]});
  CheckLengths(signature, args);
  CheckHash(signature, args.hash, args, num_tables, num_parts, num_pilots, rows[0]);
  return args;
}

void Compute(const Signature& signature, const KernelCall& call) {
  const Inputs inputs(signature, call);
  const LookupArgs args = ReadArgs(signature, inputs);
  const int64_t dim = static_cast<int64_t>(args.dim);
  if (signature.pooled) {
    const std::vector<int64_t> shape = {static_cast<int64_t>(args.batch), static_cast<int64_t>(args.keys) * dim};
    call.Run(PooledLookup(args, call.FloatOutput(0, shape)));
  } else {
    call.Run(RowLookup(args, call.FloatOutput(0, {static_cast<int64_t>(args.num_ids), dim})));
  }
}

// An operator as ONNX Runtime wants it.
struct Operator : OrtCustomOp {
  struct Kernel {
    const OrtApi* api;
    const Signature* signature;
  };

  explicit Operator(Signature s) : OrtCustomOp{}, signature(std::move(s)) {
    version = kOrtApiVersion;
    GetName = [](const OrtCustomOp* op) { return Of(op).name.c_str(); };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const OrtCustomOp* op) { return Of(op).types.size(); };
    GetInputType = [](const OrtCustomOp* op, size_t index) { return Of(op).types[index]; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo*, void** kernel) {
      return ToStatus(*api, [&] { *kernel = new Kernel{api, &Of(op)}; });
    };
    KernelComputeV2 = [](void* data, OrtKernelContext* context) {
      const Kernel& kernel = *static_cast<const Kernel*>(data);
      return ToStatus(*kernel.api, [&] { Compute(*kernel.signature, KernelCall(*kernel.api, context)); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

  static const Signature& Of(const OrtCustomOp* op) { return static_cast<const Operator*>(op)->signature; }

  const Signature signature;
};

const std::vector<std::unique_ptr<Operator>>& Operators() {
  static const std::vector<std::unique_ptr<Operator>>& operators = *[] {
    auto* made = new std::vector<std::unique_ptr<Operator>>;
    for (const RowFormat format : {RowFormat::kFloat32, RowFormat::kFloat16, RowFormat::kInt8}) {
      for (const bool weighted : {false, true}) {
        for (const bool means : {false, true}) {
          made->push_back(std::make_unique<Operator>(Signature(true, weighted, means, format)));
        }
      }
      made->push_back(std::make_unique<Operator>(Signature(false, false, false, format)));
    }
    return made;
  }();
  return operators;
}

// Of one runtime: there may be several in a process. Kept for ever, since sessions use it until they end.
OrtCustomOpDomain* DomainFor(const OrtApi& api) {
  static std::mutex mutex;
  static auto& domains = *new std::map<const OrtApi*, OrtCustomOpDomain*>;
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
extern "C" [[gnu::visibility("default")]] OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                    const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(damo::kOrtApiVersion);
  if (api == nullptr) {
    const std::string message =
        std::string("damo_torchrec's operators need ONNX Runtime 1.17 or later, this is ") + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, message.c_str());
  }
  return damo::ToStatus(*api, [&] { damo::Check(*api, api->AddCustomOpDomain(options, damo::DomainFor(*api))); });
}
