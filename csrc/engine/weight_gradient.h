// The gradient of the weights that a batch gives its ids.
#pragma once

#include <cstddef>

#include "engine/batch.h"
#include "engine/cached_tables.h"
#include "engine/compute.h"
#include "engine/lookup.h"

namespace damo {

// See Store::WeightGradient. Lets go of the mutex while rows are loaded.
void FindWeightGradient(Lookup* lookup, const float* grad, size_t stride, const CachedTables& rows,
                        const Compute& compute, RowFinder* finder, float* weight_grad) DAMO_REQUIRES(store_mutex);

}  // namespace damo
