// ONNX Runtime's C interface as a binary one: the entries that the operators use, at their places in its tables, so
// that none of its headers is needed. A version of the interface only appends to the tables of the one before it: what
// is here holds for version 17 and for all later ones. tests/csrc/onnxruntime_ops/ compares it with the real header.
#pragma once

#include <cstddef>
#include <cstdint>

// What only pointers to are known, by ONNX Runtime's names.
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

namespace damo::ort {

// The version that the operators ask for and say that they are of: runtimes from 1.17 on have it.
constexpr uint32_t kApiVersion = 17;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// ONNX's TensorProto.DataType; there are others.
enum class ElementType : int { kFloat = 1, kInt8 = 3, kInt64 = 7, kBool = 9, kFloat16 = 10, kDouble = 11 };

enum class InputOutput : int { kRequired = 0 };
enum class MemoryType : int { kDefault = 0 };

using Unused = void (*)();
struct CustomOp;

// OrtApi. A status that is nullptr is OK.
struct Api {
  OrtStatus* (*CreateStatus)(ErrorCode code, const char* message);
  ErrorCode (*GetErrorCode)(const OrtStatus* status);
  const char* (*GetErrorMessage)(const OrtStatus* status);
  Unused from_3[23];
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** domain);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const CustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  Unused from_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
  Unused from_52[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, ElementType* type);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* rank);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes, size_t rank);
  Unused from_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** info);
  Unused from_66[24];
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t rank,
                                        OrtValue** value);
  Unused from_92;
  void (*ReleaseStatus)(OrtStatus* status);
  Unused from_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  Unused from_100[149];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                  const OrtValue** value);
  Unused from_250[24];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*f)(void* data, size_t i), size_t n,
                                          size_t num_batches, void* data);
};

// OrtApiBase, which a runtime gives to those that it loads.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // nullptr: it does not have this version
  const char* (*GetVersionString)();
};

// OrtCustomOp, whole, since a runtime reads all of it that `version` has: what is nullptr is left to it.
struct CustomOp {
  uint32_t version;
  Unused CreateKernel;  // of before version 16, as KernelCompute
  const char* (*GetName)(const CustomOp* op);
  const char* (*GetExecutionProviderType)(const CustomOp* op);
  ElementType (*GetInputType)(const CustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* op);
  ElementType (*GetOutputType)(const CustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* op);
  Unused KernelCompute;
  void (*KernelDestroy)(void* kernel);
  InputOutput (*GetInputCharacteristic)(const CustomOp* op, size_t index);
  InputOutput (*GetOutputCharacteristic)(const CustomOp* op, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* op, size_t index);
  Unused variadic_inputs_and_outputs[4];
  OrtStatus* (*CreateKernelV2)(const CustomOp* op, const Api* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  Unused InferOutputShapeFn;
  Unused GetStartVersion;
  Unused GetEndVersion;
};

}  // namespace damo::ort
