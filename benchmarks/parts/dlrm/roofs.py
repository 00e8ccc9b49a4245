"""How fast a training could be whose rows are on disk: the dense part, and RocksDB without our engine."""

from dataclasses import dataclass

import numpy as np

from common import raw
from common.cold_store import payload_bytes
from common.contestants import table_configs
from common.workload import Workload, Zipf
from damo_torchrec.checkpoints.manifest import Manifest
from parts.dlrm.inputs import Inputs
from parts.dlrm.training import Outcome

# Reads under way at a time, where the disk is waited for.
IN_FLIGHT = 64
# Rows that are read to find a rate.
ROWS_TO_READ = 250_000


@dataclass(frozen=True)
class Raw:
    """Rates of RocksDB alone, in rows per second, with batches of as many rows as a training step's.

    Args:
        rows_read: in a batch.
        rows_written: in a batch.
        reads: by MultiGet. With direct I/O, of IN_FLIGHT threads, and while the writes go on.
        writes: sorted. None with direct I/O, where they are part of the above; and if there are none.
    """

    rows_read: int
    rows_written: int
    reads: float
    writes: float | None

    def roof(self, outcome: Outcome, dense_seconds: float) -> float:
        """The least seconds of a step.

        From the page cache, reads and writes take the processor, which the dense part wants too: their times add up. A
        disk works beside the dense part: the slower of both is the roof.

        Args:
            outcome: a contestant, which reads and writes so many rows.
            dense_seconds: of the dense part's step.
        """
        assert outcome.use is not None
        reading = outcome.use.rows_read / self.reads
        if outcome.entry.direct_io:
            return max(dense_seconds, reading)
        return dense_seconds + reading + (outcome.use.rows_written / self.writes if self.writes else 0)


def of_race(outcomes: list[Outcome], workload: Workload, inputs: Inputs) -> dict[int, Raw]:
    """By place in `outcomes`: the rates for a contestant whose rows are on disk."""
    measured: dict[bool, Raw | None] = {}
    rates = {}
    for place, outcome in enumerate(outcomes):
        if outcome.use is None or outcome.entry.share_in_memory(workload) == 1:
            continue
        if outcome.entry.direct_io not in measured:  # prefetching reads the same rows
            measured[outcome.entry.direct_io] = measure(outcome, workload, inputs)
        if (raw_rates := measured[outcome.entry.direct_io]) is not None:
            rates[place] = raw_rates
    return rates


def measure(outcome: Outcome, workload: Workload, inputs: Inputs) -> Raw | None:
    """The rates for what a contestant read and wrote in each step; None if all its rows were in memory."""
    racer, use = outcome.entry, outcome.use
    assert use is not None
    rows_read, rows_written = round(use.rows_read), round(use.rows_written)
    if rows_read == 0:
        return None
    db = inputs.checkpoint / "rows"
    memory_budget = racer.budget(workload)
    ids = unpopular(workload, inputs, use.cached_rows, rows_read, max(10, ROWS_TO_READ // rows_read))
    size = payload_bytes(workload)
    if racer.direct_io:
        rate = raw.multi_get(
            db,
            ids,
            rows_read,
            IN_FLIGHT,
            True,
            write_rows=rows_written,
            payload_bytes=size,
            memory_budget=memory_budget,
        )
        return Raw(rows_read, rows_written, rate.rows_per_second, None)
    for _ in range(2):  # the first time fills the page cache
        rate = raw.multi_get(db, ids, rows_read, racer.threads, False, memory_budget=memory_budget)
    writes = None
    if rows_written > 0:
        writes = raw.write(db, ids, rows_written, size, memory_budget=memory_budget).rows_per_second
    return Raw(rows_read, rows_written, rate.rows_per_second, writes)


def unpopular(workload: Workload, inputs: Inputs, cached_rows: int, rows_per_batch: int, batches: int) -> np.ndarray:
    """What a cache of the `cached_rows` most popular rows misses: int64 (n, 2), table number on disk and id.

    The rows of a batch are distinct and sorted.
    """
    records = Manifest.read(inputs.checkpoint).tables
    numbers = np.array([records[config.name].number for config in table_configs(workload)])
    ids = np.stack([workload.by_popularity(table) for table in range(workload.tables)])
    # Twice the rows of a batch are left to draw from.
    cached = min(cached_rows, ids.size - 2 * rows_per_batch) // workload.tables
    zipf = Zipf(workload.rows, workload.zipf)
    rng = np.random.default_rng((workload.seed, 2))
    keys = np.empty((batches, rows_per_batch), dtype=np.int64)
    for number in range(batches):
        distinct = np.empty(0, dtype=np.int64)
        while len(distinct) < rows_per_batch:
            ranks = zipf.sample(rng, 8 * rows_per_batch)
            ranks = ranks[ranks > cached]
            table = rng.integers(workload.tables, size=len(ranks))
            distinct = np.union1d(distinct, workload.rows * table + ids[table, ranks - 1])
        keys[number] = np.sort(rng.choice(distinct, rows_per_batch, replace=False))
    table, id_ = np.divmod(keys.ravel(), workload.rows)
    return np.stack([numbers[table], id_], axis=1)
