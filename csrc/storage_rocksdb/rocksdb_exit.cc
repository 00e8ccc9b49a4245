#include "storage_rocksdb/rocksdb_exit.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace damo {

void LeaveForkedChildrenAtExit() {
#ifdef __linux__
  static std::once_flag once;
  static pid_t process;
  std::call_once(once, [] {
    process = getpid();
    // What is registered last runs first.
    on_exit(
        [](int status, void*) {
          if (getpid() == process) return;
          std::fflush(nullptr);
          _exit(status);
        },
        nullptr);
  });
#endif
}

}  // namespace damo
