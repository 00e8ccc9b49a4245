// The Python module damo_torchrec._core: how stores and tables are set up.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <string_view>

#include "base/status.h"
#include "engine/options.h"
#include "engine/table.h"
#include "kernels/kernels.h"
#include "kernels/update_rules.h"
#include "python/bindings.h"
#include "row/initializer.h"
#include "row/weight_type.h"

namespace damo {
namespace {

// Hyperparameters that are not given have their defaults. Throws kInvalidArgument for a name that is not known.
OptimizerConfig MakeOptimizerConfig(std::string_view rule, std::string_view weight_decay_mode,
                                    const std::map<std::string, double>& hyperparameters) {
  OptimizerConfig config;
  config.kind = OptimizerNamed(rule);
  if (weight_decay_mode != "l2" && weight_decay_mode != "decoupled") {
    throw Error(ErrorCode::kInvalidArgument,
                "weight_decay_mode must be l2 or decoupled, got \"" + std::string(weight_decay_mode) + "\"");
  }
  config.weight_decay_mode = weight_decay_mode == "l2" ? WeightDecayMode::kL2 : WeightDecayMode::kDecoupled;
  for (const auto& [name, value] : hyperparameters) SetHyperparameter(&config, name, value);
  return config;
}

}  // namespace

void RegisterOptions(py::module_& m) {
  py::class_<StoreOptions>(m, "StoreOptions")
      .def(py::init<>())
      .def_readwrite("memory_budget", &StoreOptions::memory_budget)
      .def_readwrite("num_threads", &StoreOptions::num_threads)
      .def_readwrite("instruction_set", &StoreOptions::instruction_set)
      .def_readwrite("direct_io", &StoreOptions::direct_io)
      .def_readwrite("read_only", &StoreOptions::read_only)
      .def_readwrite("disk_budget", &StoreOptions::disk_budget)
      .def_readwrite("directory", &StoreOptions::directory)
      .def_readwrite("profile_cache", &StoreOptions::profile_cache)
      .def_readwrite("profile_shift", &StoreOptions::profile_shift)
      .def_readwrite("cache_bytes", &StoreOptions::cache_bytes);

  m.attr("INSTRUCTION_SETS") = py::tuple(py::cast(SupportedInstructionSets()));
  m.attr("UPDATE_RULES") = py::tuple(py::cast(OptimizerNames()));
  py::class_<OptimizerConfig>(m, "OptimizerConfig")
      .def(py::init(&MakeOptimizerConfig), py::arg("rule"), py::arg("weight_decay_mode") = "l2",
           py::arg("hyperparameters") = py::dict());
  m.def("initial_state", &InitialState, py::arg("optimizer"));

  py::native_enum<Distribution>(m, "Distribution", "enum.Enum")
      .value("CONSTANT", Distribution::kConstant)
      .value("UNIFORM", Distribution::kUniform)
      .value("NORMAL", Distribution::kNormal)
      .finalize();
  py::class_<Initializer>(m, "Initializer")
      .def(py::init<>())
      .def_readwrite("distribution", &Initializer::distribution)
      .def_readwrite("stream_key", &Initializer::stream_key)
      .def_readwrite("a", &Initializer::a)
      .def_readwrite("b", &Initializer::b)
      .def_readwrite("low", &Initializer::low)
      .def_readwrite("high", &Initializer::high);

  py::native_enum<WeightType>(m, "WeightType", "enum.Enum")
      .value("FLOAT32", WeightType::kFloat32)
      .value("FLOAT16", WeightType::kFloat16)
      .value("BFLOAT16", WeightType::kBfloat16)
      .finalize();
  py::class_<TableSchema>(m, "TableSchema")
      .def(py::init<>())
      .def_readwrite("name", &TableSchema::name)
      .def_readwrite("number", &TableSchema::number)
      .def_readwrite("dim", &TableSchema::dim)
      .def_readwrite("weight_type", &TableSchema::weight_type)
      .def_readwrite("initializer", &TableSchema::initializer)
      .def_readwrite("optimizer", &TableSchema::optimizer)
      .def_readwrite("iter", &TableSchema::iter)
      .def_readwrite("rows", &TableSchema::rows);
}

}  // namespace damo
