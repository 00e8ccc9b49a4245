// Updates that are tried on copies of rows, where numbers are so large that a row may become infinite or NaN.
#pragma once

#include <cstdint>
#include <string>

#include "engine/cached_tables.h"
#include "engine/gradients.h"
#include "kernels/kernels.h"

namespace damo {

// The first row that is finite and would not be after its update, in words, or an empty string. Changes no row.
std::string DescribeOverflow(uint16_t table, const RowGradients& gradients, const OptimizerStep& step,
                             const CachedTables& rows, const Kernels& kernels) DAMO_REQUIRES(store_mutex);

}  // namespace damo
