// The Python module damo_torchrec._core.
#include "python/bindings.h"

#include <exception>

#include "base/status.h"
#include "engine/budget.h"
#include "row/row.h"
#include "storage_rocksdb/rocksdb_options.h"

namespace damo {
namespace {

// The class in damo_torchrec.errors.
const char* PythonException(ErrorCode code) {
  switch (code) {
    case ErrorCode::kCorruption:
      return "CorruptionError";
    case ErrorCode::kOutOfSpace:
      return "OutOfSpaceError";
    case ErrorCode::kSchemaMismatch:
      return "SchemaMismatchError";
    case ErrorCode::kNonFinite:
      return "NonFiniteGradientError";
    case ErrorCode::kClosed:
      return "StoreClosedError";
    case ErrorCode::kInvalidArgument:  // Python's own ValueError
    case ErrorCode::kIo:
      break;
  }
  return "DamoError";
}

void TranslateError(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kInvalidArgument) {
      py::set_error(PyExc_ValueError, e.what());
      return;
    }
    const py::object type = py::module_::import("damo_torchrec.errors").attr(PythonException(e.code()));
    py::set_error(type, e.what());
  }
}

}  // namespace
}  // namespace damo

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of damo_torchrec. Not a public interface.";
  m.attr("LEAST_MEMORY_BUDGET") = damo::kLeastMemoryBudget;
  m.attr("MOST_MEMORY_BUDGET") = damo::kMostMemoryBudget;
  m.attr("MOST_DIM") = damo::kMostDim;
  m.attr("BLOCK_BYTES") = damo::kBlockBytes;
  m.attr("ROCKSDB_VERSION") = damo::RocksDbVersion();
  damo::py::register_local_exception_translator(damo::TranslateError);
  damo::RegisterOptions(m);
  damo::RegisterLife(m);
  damo::RegisterLookup(m);
  damo::RegisterStore(m);
  damo::RegisterSalvage(m);
  damo::RegisterServing(m);
}
