"""One table of some size, and batches that miss the cache equally often whatever that size is."""

import math
from dataclasses import dataclass

import numpy as np

from common.budget import STATE_SIZE, cache_share, cached_row_bytes

# Of a row on disk: weights, state, counters, key, and its part of blocks, index and filter.
DISK_OVERHEAD = 28
# How many times as many rows as the cache holds are read before it counts as full.
FILL = 1.25


@dataclass(frozen=True)
class Case:
    """A table and how it is trained.

    A fixed part of each batch's ids are drawn from a few hot rows, which the cache can hold. The others are those of
    rows that no batch has asked for before, so that none of them can be in memory.

    Args:
        rows: of the table, with the ids from 0.
        dim: float32 weights of a row.
        features: of the table.
        batch_size: samples in a step, each with one id for each feature.
        hot_rows: how many.
        hot_share: part of a batch's ids that are theirs.
        memory_budget: bytes, of the store.
        threads: of the store and of torch.
        direct_io: past the page cache.
        seed: of the ids.
    """

    rows: int
    dim: int
    features: int
    batch_size: int
    hot_rows: int
    hot_share: float
    memory_budget: int
    threads: int
    direct_io: bool
    seed: int

    @property
    def table_bytes(self) -> int:
        """Weights and optimizer state."""
        return self.rows * 4 * (self.dim + STATE_SIZE)

    @property
    def times_budget(self) -> float:
        return self.table_bytes / self.memory_budget

    @property
    def expected_disk_bytes(self) -> int:
        return self.table_bytes + self.rows * DISK_OVERHEAD

    @property
    def ids_per_batch(self) -> int:
        return self.features * self.batch_size

    @property
    def cold_ids_per_batch(self) -> int:
        return round((1 - self.hot_share) * self.ids_per_batch)

    @property
    def steps_to_fill(self) -> int:
        """That read more cold rows than the cache can hold."""
        cached_rows = cache_share(self.memory_budget) / cached_row_bytes(self.dim)
        return math.ceil(FILL * cached_rows / self.cold_ids_per_batch)

    @property
    def most_steps(self) -> int:
        """Until every row has been asked for."""
        return (self.rows - self.hot_rows) // self.cold_ids_per_batch

    def batch(self, number: int) -> np.ndarray:
        """The ids of step `number`, below `most_steps`: int64 (features * batch_size,), by feature, then sample."""
        rng = np.random.default_rng((self.seed, number))
        cold = self.cold_ids_per_batch
        first = number * cold
        positions = np.concatenate(
            [
                self.hot_rows + np.arange(first, first + cold),
                rng.integers(self.hot_rows, size=self.ids_per_batch - cold),
            ]
        )
        rng.shuffle(positions)
        if positions.max() >= self.rows:
            raise ValueError(f"{self.rows} rows suffice for {self.most_steps} steps, got step {number}")
        return positions * self._stride % self.rows

    @property
    def _stride(self) -> int:
        """Without a common divisor with `rows`: its multiples visit every row, each far from the one before."""
        stride = max(1, int(self.rows * (math.sqrt(5) - 1) / 2))
        while math.gcd(stride, self.rows) > 1:
            stride += 1
        return stride
