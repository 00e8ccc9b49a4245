"""How many rows a memory budget holds, and the budget that holds so many, with row-wise Adagrad."""

MIB = 1 << 20
LEAST_BUDGET = 64 * MIB
# Of a cache's bytes: segments that are being filled or kept free.
SPARE = 0.015
STATE_SIZE = 1  # floats of the optimizer for each row


def cached_row_bytes(dim: int) -> float:
    """What a row takes in the cache, by csrc/row/row.h, csrc/cache/hash_index.h and csrc/cache/row_cache.h.

    Header, weights, state and counters, in units of 8 bytes; 8 bytes of an index that is 70 % full, 2 of a filter.
    """
    row = 12 + 4 * (dim + STATE_SIZE) + 8
    return -(-row // 8) * 8 + 8 / 0.7 + 2


def cache_share(budget: int) -> int:
    """Bytes of a memory budget that are the cache's, by DivideBudget in csrc/engine/budget.cc."""
    row_store = min(24 * MIB + (budget - LEAST_BUDGET) // 8, 1024 * MIB)
    staging = 16 * MIB + (budget - LEAST_BUDGET) // 16
    return budget - row_store - budget // 32 - staging


def budget_for(cache_bytes: int) -> int:
    """The least memory budget, in whole MiB, whose cache has so many bytes."""
    low, high = LEAST_BUDGET // MIB, (LEAST_BUDGET + 2 * cache_bytes) // MIB + 1024
    while low < high:
        middle = (low + high) // 2
        if cache_share(middle * MIB) < cache_bytes:
            low = middle + 1
        else:
            high = middle
    return low * MIB
