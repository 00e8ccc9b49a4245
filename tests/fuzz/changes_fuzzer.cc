// What a table file says of its largest steps, whatever that is: a scan for changes reads the file, or not.
#include <rocksdb/table_properties.h>

#include <cstddef>
#include <cstdint>

#include "fuzz_input.h"
#include "storage_rocksdb/rocksdb_changes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  damo::fuzz::Input input(data, size);
  const auto table = input.Take<uint32_t>();
  const auto since = input.Take<uint64_t>();
  rocksdb::TableProperties properties;
  const bool is_whole = input.left() % 12 == 0;
  properties.user_collected_properties["damo.largest_steps"] = input.Rest();
  const bool reads = damo::ChangedSince(table, since)(properties);
  damo::fuzz::Require(is_whole || reads);  // what is not understood may hold anything
  return 0;
}
