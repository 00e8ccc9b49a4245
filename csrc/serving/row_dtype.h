// How exported rows are stored. A new dtype is a header in row_dtypes/, included here, and a line in the list.
//
// A dtype is a struct of static members that says all about it:
//
//   kName         what Python calls it
//   kSuffix       tells operators for it from those for others
//   kOnnxType     of the arrays that hold weights: ONNX's TensorProto.DataType
//   kWeightBytes  of each weight
//   kScaled       whether each row has a float32 that its weights are multiplied by
//   kFaint        bits of the magnitude below which a row's largest weight loses more than rounding takes
//   Encode(dim, weights, to, scale)
//                 stores a row; sets the scale if kScaled. Throws kInvalidArgument for a weight that it cannot hold
//   Row(stored, dim, scale, buffer)
//                 a stored row to read, row[j] being weight j as it is multiplied and added; `buffer` is dim floats
//
// Results are the same bits on every machine. REQUIRES: the default floating point environment.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "serving/row_dtypes/float16.h"
#include "serving/row_dtypes/float32.h"
#include "serving/row_dtypes/int8.h"

#define DAMO_ROW_DTYPES(X) \
  X(Float32)               \
  X(Float16)               \
  X(Int8)

namespace damo {

#define DAMO_ENUMERATOR(Dtype) k##Dtype,
enum class RowDtype : uint8_t { DAMO_ROW_DTYPES(DAMO_ENUMERATOR) };
#undef DAMO_ENUMERATOR

#define DAMO_VALUE(Dtype) RowDtype::k##Dtype,
constexpr std::array kRowDtypes = {DAMO_ROW_DTYPES(DAMO_VALUE)};
#undef DAMO_VALUE

// Calls f with the dtype's struct.
template <class F>
auto WithRowDtype(RowDtype dtype, F f) {
  switch (dtype) {
#define DAMO_CASE(Dtype)   \
  case RowDtype::k##Dtype: \
    return f(Dtype##Rows());
    DAMO_ROW_DTYPES(DAMO_CASE)
#undef DAMO_CASE
  }
  __builtin_unreachable();
}

// A struct's constants.
struct RowDtypeFacts {
  const char* name;
  const char* suffix;
  int onnx_type;
  size_t weight_bytes;
  bool scaled;
};

inline RowDtypeFacts FactsOf(RowDtype dtype) {
  return WithRowDtype(dtype, [](auto rows) {
    return RowDtypeFacts{rows.kName, rows.kSuffix, rows.kOnnxType, rows.kWeightBytes, rows.kScaled};
  });
}

// Throws kInvalidArgument, with the names there are.
inline RowDtype RowDtypeNamed(std::string_view name) {
  std::string known;
  for (const RowDtype dtype : kRowDtypes) {
    const char* const one = FactsOf(dtype).name;
    if (name == one) return dtype;
    known += (known.empty() ? "" : ", ") + std::string(one);
  }
  throw Error(ErrorCode::kInvalidArgument, "dtype must be one of " + known + ", got \"" + std::string(name) + "\"");
}

}  // namespace damo
