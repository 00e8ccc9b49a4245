// The Python module damo_torchrec._core: how stores and tables are set up.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include "engine/options.h"
#include "engine/table.h"
#include "kernels/optimizer.h"
#include "python/bindings.h"
#include "row/initializer.h"
#include "row/weight_type.h"

namespace damo {

void RegisterOptions(py::module_& m) {
  py::class_<StoreOptions>(m, "StoreOptions")
      .def(py::init<>())
      .def_readwrite("memory_budget", &StoreOptions::memory_budget)
      .def_readwrite("num_threads", &StoreOptions::num_threads)
      .def_readwrite("instruction_set", &StoreOptions::instruction_set)
      .def_readwrite("direct_io", &StoreOptions::direct_io)
      .def_readwrite("read_only", &StoreOptions::read_only)
      .def_readwrite("cache_bytes", &StoreOptions::cache_bytes);

  py::native_enum<OptimizerKind>(m, "OptimizerKind", "enum.Enum")
      .value("SGD", OptimizerKind::kSgd)
      .value("MOMENTUM_SGD", OptimizerKind::kMomentumSgd)
      .value("ADAGRAD", OptimizerKind::kAdagrad)
      .value("ROWWISE_ADAGRAD", OptimizerKind::kRowWiseAdagrad)
      .value("ADAM", OptimizerKind::kAdam)
      .value("AMSGRAD", OptimizerKind::kAmsGrad)
      .value("PARTIAL_ROWWISE_ADAM", OptimizerKind::kPartialRowWiseAdam)
      .value("LAMB", OptimizerKind::kLamb)
      .value("PARTIAL_ROWWISE_LAMB", OptimizerKind::kPartialRowWiseLamb)
      .value("LARS_SGD", OptimizerKind::kLarsSgd)
      .value("FTRL", OptimizerKind::kFtrl)
      .value("LION", OptimizerKind::kLion)
      .finalize();
  py::native_enum<WeightDecayMode>(m, "WeightDecayMode", "enum.Enum")
      .value("L2", WeightDecayMode::kL2)
      .value("DECOUPLED", WeightDecayMode::kDecoupled)
      .finalize();
  py::class_<OptimizerConfig>(m, "OptimizerConfig")
      .def(py::init<>())
      .def_readwrite("kind", &OptimizerConfig::kind)
      .def_readwrite("weight_decay_mode", &OptimizerConfig::weight_decay_mode)
      .def_readwrite("lr", &OptimizerConfig::lr)
      .def_readwrite("lr_decay", &OptimizerConfig::lr_decay)
      .def_readwrite("momentum", &OptimizerConfig::momentum)
      .def_readwrite("dampening", &OptimizerConfig::dampening)
      .def_readwrite("beta1", &OptimizerConfig::beta1)
      .def_readwrite("beta2", &OptimizerConfig::beta2)
      .def_readwrite("eps", &OptimizerConfig::eps)
      .def_readwrite("weight_decay", &OptimizerConfig::weight_decay)
      .def_readwrite("initial_accumulator_value", &OptimizerConfig::initial_accumulator_value)
      .def_readwrite("eta", &OptimizerConfig::eta)
      .def_readwrite("beta", &OptimizerConfig::beta)
      .def_readwrite("lambda1", &OptimizerConfig::lambda1)
      .def_readwrite("lambda2", &OptimizerConfig::lambda2)
      .def_readwrite("nesterov", &OptimizerConfig::nesterov)
      .def_readwrite("maximize", &OptimizerConfig::maximize)
      .def_readwrite("uncorrected_eps", &OptimizerConfig::uncorrected_eps)
      .def_readwrite("rowwise_bias_correction", &OptimizerConfig::rowwise_bias_correction)
      .def_readwrite("clip_value", &OptimizerConfig::clip_value)
      .def_readwrite("clip_norm", &OptimizerConfig::clip_norm);

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
