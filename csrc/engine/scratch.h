// One thread's working memory while it applies gradients, kept from call to call.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/store.h"
#include "kernels/kernels.h"

namespace damo {

struct Store::Scratch {
  std::vector<Slot> rows;               // distinct, in order of first occurrence
  std::vector<uint32_t> begin;          // [rows + 1], into occurrences
  std::vector<Occurrence> occurrences;  // by row, then in the order in which they are summed
  std::vector<Slot> slots;              // by position: what is gathered before it is grouped
  std::vector<Occurrence> gathered;
  std::vector<uint32_t> row_of;      // by position
  std::vector<uint32_t> hash_table;  // row + 1, or 0
  std::vector<float> buffer;
};

}  // namespace damo
