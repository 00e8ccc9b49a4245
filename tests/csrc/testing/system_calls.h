// The calls by which files.cc changes files, and RocksDB appends to them, so that a test can have them fail.
#pragma once

#include <atomic>

namespace damo::testing {

// Called before each write, fsync, link, mkdir and sendfile, with that name: 0 lets it pass, else it fails with this
// errno. Null lets all pass.
using SystemCallHook = int (*)(const char* name);
extern std::atomic<SystemCallHook> system_call_hook;

}  // namespace damo::testing
