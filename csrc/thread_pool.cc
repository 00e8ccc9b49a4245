#include "thread_pool.h"

#include <cfenv>
#include <string>
#include <system_error>
#include <utility>

#include "float_environment.h"
#include "status.h"

namespace damo {
ThreadPool::ThreadPool(int threads) {
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { WorkerLoop(thread); });
  } catch (const std::system_error& error) {
    Stop();
    throw Error(ErrorCode::kIo, "cannot start " + std::to_string(threads) + " threads: " + error.what());
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::WorkOn(int thread) noexcept {
  for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n_;) {
    try {
      call_(body_, i, thread);
    } catch (...) {
      next_.store(n_, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  std::fesetenv(FE_DFL_ENV);
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    start_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    if (body_ == nullptr) continue;  // woken after the round was over
    ++active_;
    lock.unlock();
    WorkOn(thread);
    lock.lock();
    if (--active_ == 0) done_.notify_one();
  }
}

void ThreadPool::Run(size_t n, void* body, Call call) {
  if (n == 0) return;
  const DefaultFloatEnvironment environment;
  const bool parallel = n > 1 && !workers_.empty();
  {
    std::lock_guard lock(mutex_);
    body_ = body;
    call_ = call;
    n_ = n;
    next_.store(0, std::memory_order_relaxed);
    error_ = nullptr;
    if (parallel) ++round_;
  }
  if (parallel) start_.notify_all();
  WorkOn(0);
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return active_ == 0; });
  body_ = nullptr;
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace damo
