// The OpenMP runtime that the process has loaded, which in a training program is torch's. Its threads keep spinning for
// some milliseconds after each of torch's operations: whoever starts threads of their own then shares processors with
// them. Its entry points have the names of GCC's libgomp, which other runtimes provide, too.
#pragma once

#include <dlfcn.h>

namespace damo {

class OpenMp {
 public:
  OpenMp()
      : parallel_(Symbol<decltype(parallel_)>("GOMP_parallel")),
        max_threads_(Symbol<decltype(max_threads_)>("omp_get_max_threads")),
        in_parallel_(Symbol<decltype(in_parallel_)>("omp_in_parallel")),
        thread_(Symbol<decltype(thread_)>("omp_get_thread_num")) {}

  // Whether the calling thread can have exactly so many threads as it has them already: a team of another size costs
  // the runtime threads that end and begin.
  bool Offers(int threads) const {
    return parallel_ && max_threads_ && in_parallel_ && thread_ && max_threads_() == threads && !in_parallel_();
  }

  // Calls body(data) once on each of `threads` threads and waits for all. REQUIRES: Offers(threads); `body` does not
  // throw.
  void Parallel(int threads, void (*body)(void*), void* data) const {
    parallel_(body, data, static_cast<unsigned>(threads), 0);
  }
  // The calling thread's number among those of Parallel, whose caller is 0.
  int thread() const { return thread_(); }

 private:
  template <class Function>
  static Function Symbol(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }

  void (*parallel_)(void (*)(void*), void*, unsigned, unsigned);
  int (*max_threads_)();
  int (*in_parallel_)();
  int (*thread_)();
};

}  // namespace damo
