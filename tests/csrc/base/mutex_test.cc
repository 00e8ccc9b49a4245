#include "base/mutex.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

namespace damo {
namespace {

TEST(MutexTest, WaitLetsGoOfTheMutexAndHasItAgain) {
  Mutex mutex;
  CondVar changed;
  bool ready = false;
  std::thread other;
  {
    const MutexLock lock(&mutex);
    other = std::thread([&] {
      const MutexLock lock(&mutex);
      ready = true;
      changed.NotifyOne();
    });
    changed.Wait(&mutex, [&] { return ready; });
    ready = false;
  }
  other.join();
  EXPECT_FALSE(ready);
}

TEST(MutexTest, AnUnlockEndsWithItsScopeWhateverEndsThat) {
  Mutex mutex;
  int calls = 0;
  {
    const MutexLock lock(&mutex);
    try {
      const MutexUnlock unlocked(&mutex);
      const MutexLock by_somebody_else(&mutex);
      ++calls;
      throw std::runtime_error("in between");
    } catch (const std::runtime_error&) {
      ++calls;
    }
    // Held again: another thread waits until this scope ends.
    std::thread other([&] {
      const MutexLock lock(&mutex);
      ++calls;
    });
    EXPECT_EQ(calls, 2);
    const MutexUnlock unlocked(&mutex);
    other.join();
  }
  EXPECT_EQ(calls, 3);
}

TEST(MutexTest, ReadersShare) {
  SharedMutex mutex;
  const ReaderLock lock(&mutex);
  std::thread([&] { const ReaderLock lock(&mutex); }).join();
}

}  // namespace
}  // namespace damo
