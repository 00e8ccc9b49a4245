// The gradients of rows where a batch has too many ids to group them (gradients.h): memory for each row, none for each
// occurrence, and several shares of a table, one after the other, each of which goes through all ids of the batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/huge_pages.h"
#include "engine/cached_tables.h"
#include "engine/gradients.h"

namespace damo {

// One thread's.
class SummedGradients {
 public:
  // Which share of its table a row is in, by its tag.
  static size_t ShareOf(uint32_t tag, size_t shares) { return (uint64_t{tag} * shares) >> 32; }
  // What a share of so many rows takes.
  static size_t BytesFor(size_t rows, int dim);

  // The memory goes back to the system with the object.
  explicit SummedGradients(size_t bytes) : pages_(AllocatePages(bytes)) {}

  // Valid until the next call. Allocates nothing. REQUIRES: the cache has all rows of the parts; the share has at most
  // `most_rows` of them, and BytesFor these there is memory.
  RowGradients Gather(const TableShare& share, const Gradients& gradients, const CachedTables& rows, size_t most_rows)
      DAMO_REQUIRES(store_mutex);

 private:
  Pages pages_;
};

}  // namespace damo
