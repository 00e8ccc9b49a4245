// The calls by which files.cc changes files, and RocksDB appends to them, so that a test can have them fail; and those
// by which a thread sleeps for 10 ms or more.
#pragma once

#include <atomic>
#include <cstddef>

namespace damo::testing {

// Called before each write, fsync, link, mkdir, sendfile and nanosleep, with that name: 0 lets it pass, else it fails
// with this errno. Null lets all pass.
using SystemCallHook = int (*)(const char* name);
extern std::atomic<SystemCallHook> system_call_hook;

// How many bytes a write writes at most; 0 for no limit. Those past the page cache are refused unless they are aligned,
// as by most file systems.
extern std::atomic<size_t> most_bytes_per_write;

}  // namespace damo::testing
