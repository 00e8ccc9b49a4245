// What the operators know of ONNX Runtime's tables is what its header says: places, arguments and numbers.
#include "onnxruntime_ops/ort_abi.h"

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

namespace {

namespace ort = damo::ort;

static_assert(ORT_API_VERSION >= ort::kApiVersion, "the header must be that of ONNX Runtime 1.17 or later");

// Passed in the same way.
template <class Ours, class Real>
constexpr bool kAlike = std::is_same_v<Ours, Real> || (std::is_pointer_v<Ours> && std::is_pointer_v<Real>) ||
                        (std::is_enum_v<Ours> && std::is_enum_v<Real>);

template <class R, class... Args, class RealR, class... RealArgs, bool kNoexcept>
  requires(sizeof...(Args) == sizeof...(RealArgs))
constexpr bool CalledAlike(R (*)(Args...), RealR (*)(RealArgs...) noexcept(kNoexcept)) {
  return kAlike<R, RealR> && (kAlike<Args, RealArgs> && ...);
}

#define DAMO_SAME_PLACE(Ours, Real, entry) static_assert(offsetof(Ours, entry) == offsetof(Real, entry))
#define DAMO_SAME_ENTRY(Ours, Real, entry) \
  DAMO_SAME_PLACE(Ours, Real, entry);      \
  static_assert(CalledAlike(decltype(Ours::entry){}, decltype(Real::entry){}))

DAMO_SAME_ENTRY(ort::Api, OrtApi, CreateStatus);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetErrorCode);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetErrorMessage);
DAMO_SAME_ENTRY(ort::Api, OrtApi, CreateCustomOpDomain);
DAMO_SAME_ENTRY(ort::Api, OrtApi, CustomOpDomain_Add);
DAMO_SAME_ENTRY(ort::Api, OrtApi, AddCustomOpDomain);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetTensorMutableData);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetTensorElementType);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetDimensionsCount);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetDimensions);
DAMO_SAME_ENTRY(ort::Api, OrtApi, GetTensorTypeAndShape);
DAMO_SAME_ENTRY(ort::Api, OrtApi, KernelContext_GetInput);
DAMO_SAME_ENTRY(ort::Api, OrtApi, KernelContext_GetOutput);
DAMO_SAME_ENTRY(ort::Api, OrtApi, ReleaseStatus);
DAMO_SAME_ENTRY(ort::Api, OrtApi, ReleaseTensorTypeAndShapeInfo);
DAMO_SAME_ENTRY(ort::Api, OrtApi, KernelInfoGetConstantInput_tensor);
DAMO_SAME_ENTRY(ort::Api, OrtApi, KernelContext_ParallelFor);

DAMO_SAME_ENTRY(ort::ApiBase, OrtApiBase, GetApi);
DAMO_SAME_ENTRY(ort::ApiBase, OrtApiBase, GetVersionString);

DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, version);
DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, CreateKernel);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetName);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetExecutionProviderType);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetInputType);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetInputTypeCount);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetOutputType);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetOutputTypeCount);
DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, KernelCompute);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, KernelDestroy);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetInputCharacteristic);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetOutputCharacteristic);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, GetInputMemoryType);
static_assert(offsetof(ort::CustomOp, variadic_inputs_and_outputs) == offsetof(OrtCustomOp, GetVariadicInputMinArity));
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, CreateKernelV2);
DAMO_SAME_ENTRY(ort::CustomOp, OrtCustomOp, KernelComputeV2);
DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, InferOutputShapeFn);
DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, GetStartVersion);
DAMO_SAME_PLACE(ort::CustomOp, OrtCustomOp, GetEndVersion);
static_assert(sizeof(ort::CustomOp) <= sizeof(OrtCustomOp));

template <class Ours, class Real>
constexpr bool SameNumber(Ours ours, Real real) {
  static_assert(sizeof(Ours) == sizeof(Real));
  return static_cast<int>(ours) == static_cast<int>(real);
}
static_assert(SameNumber(ort::ErrorCode::kFail, ORT_FAIL));
static_assert(SameNumber(ort::ErrorCode::kInvalidArgument, ORT_INVALID_ARGUMENT));
static_assert(SameNumber(ort::ElementType::kFloat, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
static_assert(SameNumber(ort::ElementType::kInt8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8));
static_assert(SameNumber(ort::ElementType::kInt64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64));
static_assert(SameNumber(ort::ElementType::kBool, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL));
static_assert(SameNumber(ort::ElementType::kFloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16));
static_assert(SameNumber(ort::ElementType::kDouble, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE));
static_assert(SameNumber(ort::InputOutput::kRequired, INPUT_OUTPUT_REQUIRED));
static_assert(SameNumber(ort::MemoryType::kDefault, OrtMemTypeDefault));

}  // namespace
