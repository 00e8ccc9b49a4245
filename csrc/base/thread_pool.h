// A persistent pool for short parallel loops. Idle workers sleep: they take no processor time from torch's own threads.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/mutex.h"
#include "base/openmp.h"

namespace damo {

class ThreadPool {
 public:
  enum class Kind {
    kOwn,
    kOpenMp,  // works on the threads of the process's OpenMP runtime while others keep them busy
  };

  // `threads` counts the calling thread: 1 starts no worker. Throws kIo if the system has no more threads.
  explicit ThreadPool(int threads, Kind kind = Kind::kOwn);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls f(i, thread) for every i in [0, n), in no fixed order; `thread` is 0 on the calling thread and below
  // threads() on all. All calls see the default floating point environment, whatever the caller's: results must not
  // depend on which thread does what. Rethrows the first exception after all threads have stopped. Thread-safe, but not
  // reentrant: loops of several callers share the workers, first come, first served.
  template <class F>
  void ParallelFor(size_t n, F&& f) {
    using Body = std::remove_reference_t<F>;
    // Not analysed: the caller, which waits, holds the locks that `f` requires.
    Run(n, &f, [](void* body, size_t i, int thread) DAMO_NO_THREAD_SAFETY_ANALYSIS {
      (*static_cast<Body*>(body))(i, thread);
    });
  }

 private:
  using Call = void (*)(void*, size_t, int);
  using Clock = std::chrono::steady_clock;

  // A call of ParallelFor, which owns it. What is not atomic is guarded by mutex_, once it is in loops_.
  struct Loop {
    void* body;
    Call call;
    size_t n;
    size_t open;  // workers that may still join
    size_t active = 0;
    std::atomic<size_t> next{0};
    std::exception_ptr error = nullptr;
    CondVar done{};
  };

  void Run(size_t n, void* body, Call call);
  void RunOnWorkers(Loop* loop);
  void RunOnOpenMp(Loop* loop);
  bool UseOpenMp();
  void WorkOn(Loop* loop, int thread) noexcept;
  void WorkerLoop(int thread);
  void Stop();

  const std::optional<OpenMp> openmp_;
  std::atomic<bool> openmp_spins_ = false;      // its threads, for others than us
  std::atomic<int> own_loops_ = 0;              // that do without it, from now on
  std::atomic<int> patience_;                   // how many they will be after the next late thread
  std::atomic<Clock::time_point> last_loop_{};  // its end
  std::vector<std::thread> workers_;
  Mutex mutex_;
  CondVar start_;
  std::vector<Loop*> loops_ DAMO_GUARDED_BY(mutex_);  // that wait for workers
  bool stop_ DAMO_GUARDED_BY(mutex_) = false;
};

}  // namespace damo
