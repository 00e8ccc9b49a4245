// Allocations that fail, as on a machine that has no memory left: those of operator new, in all threads and in the
// libraries that the tests link, and, but for builds with a sanitizer, what is taken from the system by mmap.
#pragma once

#include <cstddef>

namespace damo::testing {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DAMO_TESTS_RUN_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define DAMO_TESTS_RUN_SANITIZED
#endif
#endif

// Clang's sanitizers bring an operator new that cannot be replaced: a test that has one fail is for other builds.
#if defined(DAMO_TESTS_RUN_SANITIZED) && defined(__clang__)
inline constexpr bool kAllocationsCanFail = false;
#else
#define DAMO_ALLOCATIONS_CAN_FAIL
inline constexpr bool kAllocationsCanFail = true;
#endif

// As long as it lives, counts the allocations of all threads, and has one of them fail. One at a time.
class FailingAllocation {
 public:
  // The n-th fails, from 0 on; without a number, none.
  explicit FailingAllocation(size_t n = static_cast<size_t>(-1));
  ~FailingAllocation();
  FailingAllocation(const FailingAllocation&) = delete;
  FailingAllocation& operator=(const FailingAllocation&) = delete;

  // How many there have been, with the one that failed.
  size_t seen() const;
  bool failed() const { return seen() > n_; }

 private:
  const size_t n_;
};

}  // namespace damo::testing
