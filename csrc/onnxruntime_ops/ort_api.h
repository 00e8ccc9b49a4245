// ONNX Runtime's C interface, as far as the operators need it: tensors as views, failures as exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_ops/ort_abi.h"

namespace damo {

// A status that is not OK.
class OrtError : public std::runtime_error {
 public:
  OrtError(ort::ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ort::ErrorCode code() const { return code_; }

 private:
  ort::ErrorCode code_;
};

inline void Check(const ort::Api& api, OrtStatus* status) {
  if (status == nullptr) return;
  const OrtError error(api.GetErrorCode(status), api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  throw error;
}

// Calls f(); what it throws becomes a status.
template <class F>
OrtStatus* ToStatus(const ort::Api& api, F f) {
  try {
    f();
    return nullptr;
  } catch (const OrtError& error) {
    return api.CreateStatus(error.code(), error.what());
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::ErrorCode::kFail, error.what());
  }
}

struct Tensor {
  ort::ElementType type;
  std::vector<int64_t> shape;
  const void* data;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

inline Tensor ReadTensor(const ort::Api& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(api, api.GetTensorTypeAndShape(value, &info));
  Tensor tensor;
  size_t rank = 0;
  OrtStatus* status = api.GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = api.GetDimensionsCount(info, &rank);
  if (status == nullptr) {
    tensor.shape.resize(rank);
    status = api.GetDimensions(info, tensor.shape.data(), rank);
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  Check(api, status);
  void* data = nullptr;
  Check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

// An input of a node that is the same in all calls; nothing if it is not.
inline std::optional<Tensor> ConstantInput(const ort::Api& api, const OrtKernelInfo* info, size_t index) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  Check(api, api.KernelInfoGetConstantInput_tensor(info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return ReadTensor(api, value);
}

// A call of a kernel.
class KernelCall {
 public:
  KernelCall(const ort::Api& api, OrtKernelContext* context) : api_(api), context_(context) {}

  Tensor Input(size_t index) const {
    const OrtValue* value = nullptr;
    Check(api_, api_.KernelContext_GetInput(context_, index, &value));
    return ReadTensor(api_, value);
  }

  float* FloatOutput(size_t index, const std::vector<int64_t>& shape) const {
    OrtValue* value = nullptr;
    Check(api_, api_.KernelContext_GetOutput(context_, index, shape.data(), shape.size(), &value));
    void* data = nullptr;
    Check(api_, api_.GetTensorMutableData(value, &data));
    return static_cast<float*>(data);
  }

  // Calls work.Do(part) for each of work.parts() parts, on the session's threads. REQUIRES: it does not throw.
  template <class Work>
  void Run(const Work& work) const {
    const size_t parts = work.parts();
    if (parts == 1) return work.Do(0);
    if (parts == 0) return;
    const auto body = [](void* data, size_t part) { static_cast<const Work*>(data)->Do(part); };
    Check(api_, api_.KernelContext_ParallelFor(context_, body, parts, 0, const_cast<Work*>(&work)));
  }

 private:
  const ort::Api& api_;
  OrtKernelContext* const context_;
};

}  // namespace damo
