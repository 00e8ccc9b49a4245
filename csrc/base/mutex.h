// Locks that say what they guard: `scripts/check_locks.sh` has Clang prove that what is DAMO_GUARDED_BY a mutex is
// touched only by those that hold it. For other compilers the annotations are nothing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <shared_mutex>
#include <utility>

#ifdef __clang__
#define DAMO_LOCK_ATTRIBUTE(x) __attribute__((x))
#else
#define DAMO_LOCK_ATTRIBUTE(x)
#endif

#define DAMO_CAPABILITY(name) DAMO_LOCK_ATTRIBUTE(capability(name))
#define DAMO_SCOPED_CAPABILITY DAMO_LOCK_ATTRIBUTE(scoped_lockable)
#define DAMO_GUARDED_BY(mutex) DAMO_LOCK_ATTRIBUTE(guarded_by(mutex))
// A function, or a lambda behind its parameters, whose caller holds the locks.
#define DAMO_REQUIRES(...) DAMO_LOCK_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define DAMO_REQUIRES_SHARED(...) DAMO_LOCK_ATTRIBUTE(requires_shared_capability(__VA_ARGS__))
#define DAMO_ACQUIRE(...) DAMO_LOCK_ATTRIBUTE(acquire_capability(__VA_ARGS__))
#define DAMO_ACQUIRE_SHARED(...) DAMO_LOCK_ATTRIBUTE(acquire_shared_capability(__VA_ARGS__))
#define DAMO_RELEASE(...) DAMO_LOCK_ATTRIBUTE(release_capability(__VA_ARGS__))
#define DAMO_RELEASE_SHARED(...) DAMO_LOCK_ATTRIBUTE(release_shared_capability(__VA_ARGS__))
// A function that returns a pointer to the mutex of this name.
#define DAMO_RETURN_CAPABILITY(mutex) DAMO_LOCK_ATTRIBUTE(lock_returned(mutex))
// Only with a reason beside it.
#define DAMO_NO_THREAD_SAFETY_ANALYSIS DAMO_LOCK_ATTRIBUTE(no_thread_safety_analysis)

namespace damo {

class DAMO_CAPABILITY("mutex") Mutex {
 public:
  void Lock() DAMO_ACQUIRE() { mutex_.lock(); }
  void Unlock() DAMO_RELEASE() { mutex_.unlock(); }

 private:
  friend class CondVar;

  std::mutex mutex_;
};

// Holds a mutex for as long as it lives.
class DAMO_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) DAMO_ACQUIRE(mutex) : mutex_(mutex) { mutex_->Lock(); }
  ~MutexLock() DAMO_RELEASE() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* const mutex_;
};

// Lets go of a mutex that is held, for as long as it lives; then waits for it.
class DAMO_SCOPED_CAPABILITY MutexUnlock {
 public:
  explicit MutexUnlock(Mutex* mutex) DAMO_RELEASE(mutex) : mutex_(mutex) { mutex_->Unlock(); }
  ~MutexUnlock() DAMO_RELEASE() { mutex_->Lock(); }  // RELEASE: of what the constructor did
  MutexUnlock(const MutexUnlock&) = delete;
  MutexUnlock& operator=(const MutexUnlock&) = delete;

 private:
  Mutex* const mutex_;
};

class CondVar {
 public:
  // Lets go of `mutex` and waits until done() holds, which it calls with the mutex. REQUIRES: who makes it hold
  // notifies.
  template <class F>
  void Wait(Mutex* mutex, F done) DAMO_REQUIRES(mutex) {
    std::unique_lock lock(mutex->mutex_, std::adopt_lock);
    condition_.wait(lock, std::move(done));
    lock.release();
  }
  // The same, but gives up after so long; returns whether done() holds.
  template <class F>
  bool WaitFor(Mutex* mutex, std::chrono::nanoseconds most, F done) DAMO_REQUIRES(mutex) {
    std::unique_lock lock(mutex->mutex_, std::adopt_lock);
    const bool is_done = condition_.wait_for(lock, most, std::move(done));
    lock.release();
    return is_done;
  }
  void NotifyOne() { condition_.notify_one(); }
  void NotifyAll() { condition_.notify_all(); }

 private:
  std::condition_variable condition_;
};

class DAMO_CAPABILITY("shared mutex") SharedMutex {
 public:
  void Lock() DAMO_ACQUIRE() { mutex_.lock(); }
  void Unlock() DAMO_RELEASE() { mutex_.unlock(); }
  void LockShared() DAMO_ACQUIRE_SHARED() { mutex_.lock_shared(); }
  void UnlockShared() DAMO_RELEASE_SHARED() { mutex_.unlock_shared(); }

 private:
  std::shared_mutex mutex_;
};

// For those who read what the mutex guards.
class DAMO_SCOPED_CAPABILITY ReaderLock {
 public:
  explicit ReaderLock(SharedMutex* mutex) DAMO_ACQUIRE_SHARED(mutex) : mutex_(mutex) { mutex_->LockShared(); }
  ~ReaderLock() DAMO_RELEASE() { mutex_->UnlockShared(); }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex* const mutex_;
};

// For those who change it.
class DAMO_SCOPED_CAPABILITY WriterLock {
 public:
  explicit WriterLock(SharedMutex* mutex) DAMO_ACQUIRE(mutex) : mutex_(mutex) { mutex_->Lock(); }
  ~WriterLock() DAMO_RELEASE() { mutex_->Unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex* const mutex_;
};

}  // namespace damo
