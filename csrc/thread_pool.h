// A persistent pool for short parallel loops. Idle workers sleep: they take no processor time from torch's own threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace damo {

class ThreadPool {
 public:
  // `threads` counts the calling thread: 1 starts no worker. Throws kIo if the system has no more threads.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls f(i, thread) for every i in [0, n), in no fixed order, thread < threads(). All calls see the default floating
  // point environment, whatever the caller's: results must not depend on which thread does what. Rethrows the first
  // exception after all threads have stopped. One loop at a time: not thread-safe, not reentrant.
  template <class F>
  void ParallelFor(size_t n, F&& f) {
    using Body = std::remove_reference_t<F>;
    Run(n, &f, [](void* body, size_t i, int thread) { (*static_cast<Body*>(body))(i, thread); });
  }

 private:
  using Call = void (*)(void*, size_t, int);

  void Run(size_t n, void* body, Call call);
  void WorkOn(int thread) noexcept;
  void WorkerLoop(int thread);
  void Stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  uint64_t round_ = 0;  // guarded by mutex_, like `active_` and `stop_`
  int active_ = 0;
  bool stop_ = false;

  void* body_ = nullptr;
  Call call_ = nullptr;
  size_t n_ = 0;
  std::atomic<size_t> next_{0};
  std::exception_ptr error_;  // guarded by mutex_
};

}  // namespace damo
