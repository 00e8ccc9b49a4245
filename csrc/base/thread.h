// How threads are begun.
#pragma once

#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"

namespace damo {

// A thread that runs f(). Throws kIo if the system has no more threads, or no memory for this one.
template <class F>
std::thread StartThread(F f) {
  try {
    return std::thread(std::move(f));
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kIo, std::string("cannot start a thread: ") + error.what());
  }
}

}  // namespace damo
