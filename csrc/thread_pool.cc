#include "thread_pool.h"

#include <algorithm>
#include <cfenv>
#include <string>
#include <system_error>

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

void ThreadPool::WorkOn(Loop* loop, int thread) noexcept {
  for (size_t i; (i = loop->next.fetch_add(1, std::memory_order_relaxed)) < loop->n;) {
    try {
      loop->call(loop->body, i, thread);
    } catch (...) {
      loop->next.store(loop->n, std::memory_order_relaxed);
      std::lock_guard lock(mutex_);
      if (!loop->error) loop->error = std::current_exception();
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  std::fesetenv(FE_DFL_ENV);
  std::unique_lock lock(mutex_);
  while (true) {
    start_.wait(lock, [&] { return stop_ || !loops_.empty(); });
    if (stop_) return;
    Loop* loop = loops_.front();
    ++loop->active;
    if (--loop->open == 0) loops_.erase(loops_.begin());
    lock.unlock();
    WorkOn(loop, thread);
    lock.lock();
    if (--loop->active == 0) loop->done.notify_one();
  }
}

void ThreadPool::Run(size_t n, void* body, Call call, int most) {
  if (n == 0) return;
  const DefaultFloatEnvironment environment;
  const size_t helpers = std::min({n - 1, static_cast<size_t>(std::max(most, 1)) - 1, workers_.size()});
  Loop loop{.body = body, .call = call, .n = n, .open = helpers};
  if (helpers > 0) {
    {
      std::lock_guard lock(mutex_);
      loops_.push_back(&loop);
    }
    if (helpers == workers_.size()) {
      start_.notify_all();
    } else {
      for (size_t i = 0; i < helpers; ++i) start_.notify_one();
    }
  }
  WorkOn(&loop, 0);
  if (helpers > 0) {
    std::unique_lock lock(mutex_);
    std::erase(loops_, &loop);
    loop.done.wait(lock, [&] { return loop.active == 0; });
  }
  if (loop.error) std::rethrow_exception(loop.error);
}

}  // namespace damo
