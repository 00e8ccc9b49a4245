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

// Lets go of Python's lock for as long as it lives; then waits for it. A thread that comes back once the interpreter is
// ending, as a daemon thread may, waits for ever, as it does by itself from Python 3.14 on. Before, Python ends it by
// an exception of the C library's, which a destructor must not let pass: pybind11's own guard ends the process.
class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() { Take(thread_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // Calls f() with the lock.
  template <class F>
  void WithGil(F f) {
    Take(thread_);
    const struct Again {
      WithoutGil* self;
      ~Again() { self->thread_ = PyEval_SaveThread(); }
    } again{this};
    f();
  }

 private:
  static void Take(PyThreadState* thread) noexcept {
    try {
      PyEval_RestoreThread(thread);
    } catch (...) {
      for (;;) pause();
    }
  }

  PyThreadState* thread_;
};

// For calls. What py::init makes by a function is noted by pybind11 within the guard, which needs Python's lock: such a
// function lets go of it itself, and has it again when it returns.
using ReleaseGil = py::call_guard<WithoutGil>;

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
void RegisterLife(py::module_& m);     // bindings_life.cc
void RegisterLookup(py::module_& m);   // bindings_store.cc
void RegisterStore(py::module_& m);    // bindings_store.cc
void RegisterSalvage(py::module_& m);  // bindings_salvage.cc
void RegisterServing(py::module_& m);  // bindings_serving.cc

}  // namespace damo
