"""What a store tells of itself during a race."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Between two quarters of a warm-up, rows read per step may differ by this much.
STEADY = 0.02
MIN_WINDOWS = 4


@dataclass(frozen=True)
class Figures:
    """Of one moment.

    Args:
        hits: ids that were in memory when a forward asked for them, since the store was opened.
        misses: and that were not.
        rows_read: different rows read from RocksDB.
        rows_written: rows written back to it.
        cached_rows: rows in memory now.
        memory_bytes: that the store says it uses now.
        growth_bytes: by how much more memory the process has than before the store was opened.
    """

    hits: int
    misses: int
    rows_read: int
    rows_written: int
    cached_rows: int
    memory_bytes: int
    growth_bytes: int


@dataclass(frozen=True)
class WarmUp:
    """How a cache came to be as full, and as well chosen, as in a long training.

    Args:
        window: steps.
        read: rows read per step, by window of steps.
        steady: whether that has come to rest, and as many rows were read as the cache holds.
    """

    window: int
    read: list[float]
    steady: bool

    @property
    def steps(self) -> int:
        return self.window * len(self.read)


def is_steady(read: Sequence[float], rows_to_read: float) -> bool:
    """Whether the last two quarters of a warm-up hardly differ, and `rows_to_read`, in windows' units, were read."""
    if len(read) < MIN_WINDOWS or sum(read) < rows_to_read:
        return False
    quarter = len(read) // 4
    last, before = np.mean(read[-quarter:]), np.mean(read[-2 * quarter : -quarter])
    return bool(abs(last - before) <= STEADY * before)


@dataclass(frozen=True)
class Use:
    """What a step asked of a store, on average, and what memory it had in the end.

    Args:
        hit_rate: of ids.
        rows_read: different rows, from RocksDB.
        rows_written: to RocksDB.
        cached_rows: rows in memory.
        memory_bytes: that the store says it uses.
        growth_bytes: of the process, since before the store was opened.
    """

    hit_rate: float
    rows_read: float
    rows_written: float
    cached_rows: int
    memory_bytes: int
    growth_bytes: int


def use_between(before: Figures | None, after: Figures | None, steps: int) -> Use | None:
    """Over so many steps; None without figures."""
    if before is None or after is None:
        return None
    hits, misses = after.hits - before.hits, after.misses - before.misses
    return Use(
        hit_rate=hits / (hits + misses),
        rows_read=(after.rows_read - before.rows_read) / steps,
        rows_written=(after.rows_written - before.rows_written) / steps,
        cached_rows=after.cached_rows,
        memory_bytes=after.memory_bytes,
        growth_bytes=after.growth_bytes,
    )
