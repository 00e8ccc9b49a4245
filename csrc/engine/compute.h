// What the loops of a store run on.
#pragma once

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace damo {

struct Compute {
  const Kernels* kernels;
  ThreadPool* threads;
};

}  // namespace damo
