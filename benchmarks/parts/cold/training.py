"""How fast changed rows leave a memory that is too small for them, and what RocksDB writes for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from common import raw
from common.budget import LEAST_BUDGET
from common.cold_store import ScatteredIds, as_input, collection, payload_bytes, settle
from common.program import RefusedError
from common.workload import Workload, Zipf

# The rows are so many times the memory budget.
TIMES_BUDGET = 10
SLICES = 15
# Until the memory is full, nothing has to be written back.
WARM_UP_SLICES = 5


@dataclass(frozen=True)
class WriteBack:
    """What a training run wrote, after its warm-up.

    Args:
        memory_budget: of its store.
        row_bytes: of a row in the store.
        steps: of each slice of the run.
        seconds: of each slice.
        rows: that were written back in each slice.
        bytes_written: by RocksDB, in all slices and the compactions that they left.
        raw: of RocksDB alone, which writes as many rows, or all of the store's, in as many parts.
    """

    memory_budget: int
    row_bytes: int
    steps: int
    seconds: list[float]
    rows: list[int]
    bytes_written: int
    raw: raw.Rate

    @property
    def rates(self) -> list[float]:
        """Rows written back per second, of each slice."""
        return [rows / seconds for rows, seconds in zip(self.rows, self.seconds, strict=True)]

    @property
    def amplification(self) -> float:
        """Bytes that RocksDB wrote, by flushes and compactions, for each byte of rows written back."""
        return self.bytes_written / (self.row_bytes * sum(self.rows))


def train(
    path: Path, workload: Workload, ids: ScatteredIds, threads: int, steps: int, on_slice: Callable[[], object]
) -> WriteBack:
    """Trains on Zipf-distributed ids with the store at `path`, whose memory is a tenth of its rows.

    Args:
        path: of a store with all rows.
        workload: its tables, and the batches.
        ids: of its rows.
        threads: of the store.
        steps: of training, in all.
        on_slice: is called after each of SLICES.
    """
    row_bytes = payload_bytes(workload)
    budget, cache_bytes = memory_for(workload.tables * workload.rows * row_bytes // TIMES_BUDGET)
    options = damo.StoreOptions(num_threads=threads, cache_bytes=cache_bytes)
    slice_steps = max(1, steps // SLICES)
    trainer = Trainer(workload, ids)
    seconds: list[float] = []
    rows: list[int] = []
    with damo.EmbeddingStore(path, memory_budget=budget, options=options) as store:
        checkpoint = store.checkpoints()[-1]
        module = collection(store, workload)
        for number in range(SLICES):
            if number == WARM_UP_SLICES:
                settle(store)
                bytes_before = store.stats().bytes_written
            batches = trainer.batches(slice_steps)
            rows_before, start = store.stats().rows_written, time.perf_counter()
            for batch in batches:
                trainer.step(module, batch)
            if number >= WARM_UP_SLICES:
                seconds.append(time.perf_counter() - start)
                rows.append(store.stats().rows_written - rows_before)
            on_slice()
        settle(store)
        bytes_written = store.stats().bytes_written - bytes_before
    if not all(rows):
        raise RefusedError(f"{steps} steps write too few rows back to tell how fast that goes: take more --steps")
    keys = ids.keys(0, workload.rows // workload.batch_size)[: sum(rows)]
    rate = raw.write(checkpoint / "rows", keys, -(-len(keys) // len(rows)), row_bytes, memory_budget=budget)
    return WriteBack(budget, row_bytes, slice_steps, seconds, rows, bytes_written, rate)


def memory_for(row_bytes: int) -> tuple[int, int]:
    """A memory budget of so many bytes, or the least; for that one, a limit on the bytes of rows in it, else 0."""
    return (row_bytes, 0) if row_bytes >= LEAST_BUDGET else (LEAST_BUDGET, row_bytes)


class Trainer:
    """Makes batches of Zipf-distributed ids, and trains on them with one gradient."""

    def __init__(self, workload: Workload, ids: ScatteredIds) -> None:
        self._workload = workload
        self._ids = ids
        self._zipf = Zipf(workload.rows, workload.zipf)
        self._rng = np.random.default_rng((workload.seed, 1))
        self._gradient = torch.randn(workload.batch_size, workload.tables * workload.dim) / workload.batch_size

    def batches(self, count: int) -> list[KeyedJaggedTensor]:
        """Batches that go on where the last ones ended."""
        shape = (count, self._workload.tables, self._workload.batch_size)
        ranks = self._zipf.sample(self._rng, math.prod(shape)).reshape(shape)
        return [as_input(self._workload, self._ids.of_ranks(batch)) for batch in ranks]

    def step(self, module: damo.EmbeddingBagCollection, batch: KeyedJaggedTensor) -> None:
        """Lookup, backward and update."""
        torch.autograd.backward(module(batch).values(), self._gradient)
