// What the files of the Python module damo_torchrec._core share. Arrays come in as addresses (torch's data_ptr()) with
// their sizes; the package checks dtypes, devices and contiguity before it calls, and keeps the tensors alive.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <cstdint>
#include <memory>

namespace damo {

namespace py = pybind11;

using Address = uintptr_t;
// For calls. What py::init makes by a function is noted by pybind11 within the guard, which needs Python's lock: such a
// function lets go of it itself, and has it again when it returns.
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

template <class T>
T* At(Address address) {
  return reinterpret_cast<T*>(address);
}

// In a forked child the store's threads do not exist and its files belong to the parent: it is left as it is.
struct Forget {
  pid_t process = getpid();
  template <class T>
  void operator()(T* object) const {
    if (getpid() == process) delete object;
  }
};
template <class T>
using Held = std::unique_ptr<T, Forget>;

void RegisterOptions(py::module_& m);  // bindings_options.cc
void RegisterLookup(py::module_& m);   // bindings_store.cc
void RegisterStore(py::module_& m);    // bindings_store.cc
void RegisterSalvage(py::module_& m);  // bindings_salvage.cc
void RegisterServing(py::module_& m);  // bindings_serving.cc

}  // namespace damo
