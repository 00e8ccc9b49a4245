// torch.set_flush_denormal and the like change the calling thread's floating point environment, and new threads inherit
// their creator's. Results must not depend on it.
#pragma once

#include <cfenv>

namespace damo {

// The default environment for as long as it lives, on this thread.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatEnvironment() { std::fesetenv(&saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t saved_;
};

}  // namespace damo
