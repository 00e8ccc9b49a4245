// How a process that has used RocksDB ends.
#pragma once

namespace damo {

// RocksDB's thread pool waits at exit for its threads, which a forked child does not have: a child that ends by exit(3)
// instead of _exit(2), as after os.fork and sys.exit, would wait for ever. From this call on, children of this process
// end at once, after flushing their standard streams. Idempotent.
void LeaveForkedChildrenAtExit();

}  // namespace damo
