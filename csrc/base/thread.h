// How threads are begun.
#pragma once

#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/status.h"

namespace damo {

// Gives the calling thread the memory that its first exception takes. Where there is none left when that is thrown, the
// C library ends the process.
inline void PrepareToThrow() { static_cast<void>(std::uncaught_exceptions()); }

// A thread that runs f(). Throws kIo if the system has no more threads, or no memory for this one.
template <class F>
std::thread StartThread(F f) {
  try {
    return std::thread([f = std::move(f)]() mutable {
      PrepareToThrow();
      f();
    });
  } catch (const std::system_error& error) {
    throw Error(ErrorCode::kIo, std::string("cannot start a thread: ") + error.what());
  }
}

}  // namespace damo
