// A thread that does jobs one after the other, in the order in which they were posted.
#pragma once

#include <deque>
#include <functional>
#include <thread>
#include <utility>

#include "base/mutex.h"
#include "base/thread.h"

namespace damo {

class Worker {
 public:
  // Throws kIo if the system has no more threads.
  Worker() : thread_(StartThread([this] { Loop(); })) {}
  // Waits for the job under way and drops those that have not begun.
  ~Worker() {
    {
      const MutexLock lock(&mutex_);
      stop_ = true;
    }
    wake_.NotifyOne();
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Thread-safe. Where it throws std::bad_alloc the job has not been posted. REQUIRES: `job` does not throw.
  void Post(std::function<void()> job) {
    {
      const MutexLock lock(&mutex_);
      jobs_.push_back(std::move(job));
    }
    wake_.NotifyOne();
  }

 private:
  void Loop() {
    const MutexLock lock(&mutex_);
    while (true) {
      wake_.Wait(&mutex_, [&]() DAMO_REQUIRES(mutex_) { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      const std::function<void()> job = std::move(jobs_.front());
      jobs_.pop_front();
      const MutexUnlock unlocked(&mutex_);
      job();
    }
  }

  Mutex mutex_;
  CondVar wake_;
  std::deque<std::function<void()>> jobs_ DAMO_GUARDED_BY(mutex_);
  bool stop_ DAMO_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace damo
