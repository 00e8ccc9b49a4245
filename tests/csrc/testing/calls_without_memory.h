// Calls that find no memory at one place after the other.
#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <functional>
#include <new>

#include "testing/failing_allocations.h"

namespace damo::testing {

// Whether the call threw std::bad_alloc, and whether an allocation failed: a thread in the background may do without.
struct Outcome {
  bool threw;
  bool failed;
};

inline Outcome CallWithoutMemory(size_t n, const std::function<void()>& call) {
  const FailingAllocation failing(n);
  try {
    call();
    return {false, failing.failed()};
  } catch (const std::bad_alloc&) {
    return {true, failing.failed()};
  }
}

// Calls attempt(n), which has the n-th allocation of a call fail and says whether there was one, from 0 on until there
// is none.
inline void FailEachAllocation(const std::function<bool(size_t)>& attempt) {
  if (!kAllocationsCanFail) GTEST_SKIP() << "allocations cannot fail in this build";
  size_t n = 0;
  while (attempt(n) && !::testing::Test::HasFailure()) ++n;
  EXPECT_GT(n, 0u) << "nothing was allocated";
}

}  // namespace damo::testing
