"""Tables whose ids arrive all the time and are asked for again, the newer the more often. Their number is bounded."""

import math
from dataclasses import dataclass

import numpy as np

from common.budget import STATE_SIZE
from common.workload import Zipf, scatter

COUNTERS = 8  # bytes of a row
# Of the rows' bytes: what checkpoints hold besides the live rows, and what compaction writes before it removes.
DISK_FACTOR = 6


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        tables: of one feature each, with row-wise Adagrad.
        dim: float32 weights of a row.
        batch_size: samples in a step, each with one id for each table.
        new_share: part of a batch's ids that arrive with it.
        zipf: exponent of the distribution of the others over all that have arrived, the newest first.
        memory_budget: bytes, of the store.
        times_budget: how many times as many bytes of rows there come to be.
        keep: checkpoints.
        threads: of the store and of torch.
        seed: of ids and labels.
    """

    tables: int
    dim: int
    batch_size: int
    new_share: float
    zipf: float
    memory_budget: int
    times_budget: float
    keep: int
    threads: int
    seed: int

    @property
    def rows(self) -> int:
        """Of a table, in the end."""
        row_bytes = 4 * (self.dim + STATE_SIZE) + COUNTERS
        return math.ceil(self.times_budget * self.memory_budget / (self.tables * row_bytes))

    @property
    def arrivals(self) -> int:
        """Ids of a table that arrive with a batch."""
        return max(1, round(self.new_share * self.batch_size))

    @property
    def steps_to_fill(self) -> int:
        """After which every row is there."""
        return math.ceil(self.rows / self.arrivals)

    @property
    def remembered(self) -> int:
        """How many of those that arrived last are asked for again."""
        return self.rows

    @property
    def expected_disk_bytes(self) -> int:
        """At most."""
        return int(DISK_FACTOR * self.times_budget * self.memory_budget)

    def arriving(self, step: int) -> np.ndarray:
        """The ids that arrive with a step: int64 (tables, arrivals).

        Arrivals are numbered. Once as many have come as a table has rows, the id that arrived first comes again.
        """
        return self._ids(np.broadcast_to(np.arange(self.arrivals) + step * self.arrivals, (self.tables, self.arrivals)))

    def batch(self, step: int) -> np.ndarray:
        """The ids of a step, first those that arrive: int64 (tables, batch_size)."""
        rng = np.random.default_rng((self.seed, step))
        newest = (step + 1) * self.arrivals
        again = (self.tables, self.batch_size - self.arrivals)
        ages = Zipf(min(newest, self.remembered), self.zipf).sample(rng, math.prod(again)).reshape(again)
        return np.concatenate([self.arriving(step), self._ids(newest - ages)], axis=1)

    def _ids(self, numbers: np.ndarray) -> np.ndarray:
        """Those of arrivals: int64 (tables, n)."""
        return np.stack([scatter(self._come_again(of_table), table) for table, of_table in enumerate(numbers)])

    def _come_again(self, numbers: np.ndarray) -> np.ndarray:
        """The same arrivals as numbers of ids."""
        return numbers % self.rows


@dataclass(frozen=True)
class EndlessCase(Case):
    """The same where no id arrives twice, and a table's options say which get rows, and which rows go.

    `rows` is what a table may have at most.
    """

    @property
    def remembered(self) -> int:
        """Of those that arrived last, which are asked for again: also of rows that have gone."""
        return 4 * self.rows

    @property
    def idle_steps(self) -> int:
        """After which rows with a single update go."""
        return max(1, self.steps_to_fill // 4)

    @property
    def idle_minutes(self) -> int:
        """After which any row goes, at a minute for each step."""
        return 3 * self.steps_to_fill

    @property
    def sighted_steps(self) -> int:
        """After which an id that has no row yet, and was not seen again, is forgotten."""
        return self.steps_to_fill

    @property
    def credit(self) -> int:
        """Of a cut, in steps."""
        return self.steps_to_fill

    def _come_again(self, numbers: np.ndarray) -> np.ndarray:
        return numbers
