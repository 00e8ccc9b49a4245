#include "base/thread_pool.h"

#include <algorithm>
#include <cfenv>
#include <chrono>

#include "base/float_environment.h"
#include "base/thread.h"

namespace damo {
namespace {

// OpenMP's threads spin for some milliseconds after a loop. Right after torch's, they are there anyway and take up ours
// at once; otherwise they would take time from others for nothing. A loop that comes after a pause tries: a thread that
// begins so soon has been spinning, and not for us.
constexpr std::chrono::milliseconds kPause(1);
constexpr std::chrono::microseconds kSoon(50);
// They also wait for each other at the end. Where other programs want the processors, too, one may come late by a
// scheduler's time slice. A wait this long shows it; some loops then use threads of the pool's own, which nobody waits
// for before they have begun: few after the first such wait, twice as many after each that follows.
constexpr std::chrono::milliseconds kMostWait(2);
constexpr int kLeastOwnLoops = 4;
constexpr int kMostOwnLoops = 512;

}  // namespace

ThreadPool::ThreadPool(int threads, Kind kind)
    : openmp_(kind == Kind::kOpenMp ? std::optional(OpenMp()) : std::nullopt), patience_(kLeastOwnLoops) {
  workers_.reserve(static_cast<size_t>(std::max(threads - 1, 0)));
  try {
    for (int thread = 1; thread < threads; ++thread) {
      workers_.push_back(StartThread([this, thread] { WorkerLoop(thread); }));
    }
  } catch (...) {
    Stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { Stop(); }

void ThreadPool::Stop() {
  {
    const MutexLock lock(&mutex_);
    stop_ = true;
  }
  start_.NotifyAll();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::WorkOn(Loop* loop, int thread) noexcept {
  for (size_t i; (i = loop->next.fetch_add(1, std::memory_order_relaxed)) < loop->n;) {
    try {
      loop->call(loop->body, i, thread);
    } catch (...) {
      loop->next.store(loop->n, std::memory_order_relaxed);
      const MutexLock lock(&mutex_);
      if (!loop->error) loop->error = std::current_exception();
    }
  }
}

void ThreadPool::WorkerLoop(int thread) {
  std::fesetenv(FE_DFL_ENV);
  const MutexLock lock(&mutex_);
  while (true) {
    start_.Wait(&mutex_, [&]() DAMO_REQUIRES(mutex_) { return stop_ || !loops_.empty(); });
    if (stop_) return;
    Loop* loop = loops_.front();
    ++loop->active;
    if (--loop->open == 0) loops_.erase(loops_.begin());
    {
      const MutexUnlock unlocked(&mutex_);
      WorkOn(loop, thread);
    }
    if (--loop->active == 0) loop->done.NotifyOne();
  }
}

void ThreadPool::Run(size_t n, void* body, Call call) {
  if (n == 0) return;
  const DefaultFloatEnvironment environment;
  Loop loop{.body = body, .call = call, .n = n, .open = std::min(n - 1, workers_.size())};
  if (loop.open == 0) {
    WorkOn(&loop, 0);
  } else if (UseOpenMp()) {
    RunOnOpenMp(&loop);
  } else {
    RunOnWorkers(&loop);
  }
  last_loop_ = Clock::now();
  if (loop.error) std::rethrow_exception(loop.error);
}

bool ThreadPool::UseOpenMp() {
  if (!openmp_ || !openmp_->Offers(threads())) return false;
  if (own_loops_ > 0) {
    --own_loops_;
    return false;
  }
  return openmp_spins_ || Clock::now() - last_loop_.load() > kPause;
}

void ThreadPool::RunOnWorkers(Loop* loop) {
  const size_t helpers = loop->open;
  {
    const MutexLock lock(&mutex_);
    loops_.push_back(loop);
  }
  if (helpers == workers_.size()) {
    start_.NotifyAll();
  } else {
    for (size_t i = 0; i < helpers; ++i) start_.NotifyOne();
  }
  WorkOn(loop, 0);
  const MutexLock lock(&mutex_);
  std::erase(loops_, loop);
  loop->done.Wait(&mutex_, [&] { return loop->active == 0; });
}

void ThreadPool::RunOnOpenMp(Loop* loop) {
  struct Work {
    ThreadPool* pool;
    Loop* loop;
    std::atomic<Clock::time_point> last_begin;  // of all threads
    Clock::time_point done;                     // by the caller
  };
  const Clock::time_point begin = Clock::now();
  Work work{this, loop, begin, {}};
  openmp_->Parallel(
      threads(),
      [](void* data) {
        PrepareToThrow();
        Work* work = static_cast<Work*>(data);
        const Clock::time_point now = Clock::now();
        for (Clock::time_point last = work->last_begin;
             now > last && !work->last_begin.compare_exchange_weak(last, now);) {
        }
        const DefaultFloatEnvironment environment;
        const int thread = work->pool->openmp_->thread();
        work->pool->WorkOn(work->loop, thread);
        if (thread == 0) work->done = Clock::now();
      },
      &work);
  if (begin - last_loop_.load() > kPause) openmp_spins_ = work.last_begin.load() - begin < kSoon;
  if (Clock::now() - work.done > kMostWait) {
    own_loops_ = patience_.load();
    patience_ = std::min(2 * patience_.load(), kMostOwnLoops);
  } else {
    patience_ = kLeastOwnLoops;
  }
}

}  // namespace damo
