"""What is trained on to see which rows the cache keeps, and what came of it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.budget import LEAST_BUDGET, MIB, SPARE, budget_for, cache_share, cached_row_bytes
from common.program import RefusedError
from common.workload import Zipf

OURS, HINDSIGHT, KNOWN, LRU = "damo_torchrec", "best in hindsight", "best by distribution", "LRU"
# Hindsight that gains more than this on the distribution knows chance, not popularity.
HINDSIGHT_LIMIT = 0.02


@dataclass(frozen=True)
class Case:
    """What is looked up and updated.

    Args:
        tables: number of tables, one feature each.
        rows: different ids of each table.
        dim: float32 weights of a row.
        batch_size: samples in a step.
        zipf: exponent of the ids' distribution.
        share: part of the rows that the memory budget is for.
        steps: the first half of which fills the cache and is not counted.
        backend: where the rows are that are not in the cache, "memory" or "rocksdb".
        seed: of the ids.
    """

    tables: int
    rows: int
    dim: int
    batch_size: int
    zipf: float
    share: float
    steps: int
    backend: str
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.tables} tables × {self.rows:,} rows, dim {self.dim}, batch {self.batch_size:,}, 1 per feature, "
            f"Zipf {self.zipf:g}, memory for {self.share:.3g} of the rows, {self.steps:,} steps"
        )

    @property
    def all_rows(self) -> int:
        return self.tables * self.rows

    @property
    def first_counted(self) -> int:
        """The step that is counted first."""
        return self.steps // 2

    @property
    def ids(self) -> int:
        """That are looked up in the steps counted."""
        return (self.steps - self.first_counted) * self.tables * self.batch_size

    def budget(self) -> int:
        """The memory budget of a store whose cache holds about the share.

        Raises:
            RefusedError: that of any store holds more.
        """
        cache_bytes = int((1 + SPARE) * self.share * self.all_rows * cached_row_bytes(self.dim))
        least = cache_share(LEAST_BUDGET)
        if cache_bytes < least:
            raise RefusedError(
                f"{self.share:.3g} of {self.all_rows:,} rows take {cache_bytes / MIB:.1f} MiB, but the cache of a "
                f"store has at least {least / MIB:.1f} MiB: take a larger --share, --rows or --dim"
            )
        return budget_for(cache_bytes)

    def batches(self) -> Iterator[np.ndarray]:
        """The ranks of each step's ids by popularity, from 0: int64 (tables, batch_size)."""
        rng = np.random.default_rng(self.seed)
        zipf = Zipf(self.rows, self.zipf)
        for _ in range(self.steps):
            yield zipf.sample(rng, self.tables * self.batch_size).reshape(self.tables, -1) - 1

    def numbers(self, ranks: np.ndarray) -> np.ndarray:
        """Of rows, over all tables: int64 (tables * batch_size,) below `all_rows`."""
        return (ranks + np.arange(self.tables)[:, None] * self.rows).ravel()


@dataclass(frozen=True)
class Outcome:
    """What was counted.

    Args:
        ids: that were looked up.
        cached_rows: that our cache held, and each other policy with it.
        misses: by policy.
    """

    ids: int
    cached_rows: int
    misses: dict[str, int]

    def ratio(self, policy: str, best: str) -> float:
        """Its misses for each of another."""
        return self.misses[policy] / self.misses[best]

    @property
    def doubt(self) -> str | None:
        """Why the ratios are not to be relied on, if so."""
        gain = 1 - self.ratio(HINDSIGHT, KNOWN)
        if gain <= HINDSIGHT_LIMIT:
            return None
        return f"too few ids were counted to tell: hindsight alone saves {gain:.0%} of the misses"
