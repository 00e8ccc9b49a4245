"""A store that is larger than its memory, and ids of its rows that nobody has asked for yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchrec
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from common.contestants import feature_names, table_configs
from common.workload import Workload
from damo_torchrec.checkpoints.manifest import Manifest

ROWS_PER_CALL = 65536
# RocksDB counts as idle after so many seconds without a new file.
IDLE_SECONDS = 1.0


def collection(
    store: damo.EmbeddingStore, workload: Workload, device: torch.device | None = None
) -> damo.EmbeddingBagCollection:
    """The workload's tables, under row-wise Adagrad, whose outputs are on `device`; None for the CPU."""
    return damo.EmbeddingBagCollection(
        tables=table_configs(workload),
        optimizer_type=torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs={"lr": 0.01},
        device=device,
        store=store,
    )


def payload_bytes(workload: Workload) -> int:
    """Of a row under row-wise Adagrad: weights, one float of state, and two counters."""
    return 4 * (workload.dim + 1) + 8


def load(path: Path, workload: Workload, memory_budget: int, on_rows: Callable[[int], object]) -> Path:
    """Makes a store at `path` with all rows and returns its checkpoint. `on_rows` gets how many more there are."""
    with damo.EmbeddingStore(path, memory_budget=memory_budget) as store:
        for table in collection(store, workload).tables():
            for ids in torch.split(torch.arange(workload.rows), ROWS_PER_CALL):
                table.set(ids, torch.randn(len(ids), workload.dim))
                on_rows(len(ids))
        store.flush()  # what is still in memory
        store.checkpoint()
        settle(store)
    return store.checkpoints()[-1]


def settle(store: damo.EmbeddingStore) -> None:
    """Waits for the compactions that are due."""
    written, since = store.stats().bytes_written, time.monotonic()
    while time.monotonic() < since + IDLE_SECONDS:
        time.sleep(IDLE_SECONDS / 10)
        if written != (written := store.stats().bytes_written):
            since = time.monotonic()


class ScatteredIds:
    """Every id of a store once, in an order that scatters neighbours.

    Args:
        workload: whose tables have the ids from 0 to rows - 1.
        checkpoint: of the store.
    """

    def __init__(self, workload: Workload, checkpoint: Path) -> None:
        self._ids = np.stack([workload.by_popularity(table) for table in range(workload.tables)])
        self._batch_size = workload.batch_size
        tables = Manifest.read(checkpoint).tables
        self._numbers = np.array([tables[config.name].number for config in table_configs(workload)])

    def batch(self, number: int) -> np.ndarray:
        """Ids that no other batch has: int64 (tables, batch_size)."""
        return self._ids[:, number * self._batch_size : (number + 1) * self._batch_size]

    def of_ranks(self, ranks: np.ndarray) -> np.ndarray:
        """Ranks by popularity, from 1, as ids: int64 (tables, n) both."""
        return np.take_along_axis(self._ids, ranks - 1, axis=1)

    def keys(self, begin: int, end: int) -> np.ndarray:
        """Batches `begin` to `end` - 1 as raw.py takes them: int64 (rows, 2), table numbers on disk and ids."""
        batches = self._ids[:, begin * self._batch_size : end * self._batch_size]
        batches = batches.reshape(len(self._ids), -1, self._batch_size).swapaxes(0, 1)
        tables = np.broadcast_to(self._numbers[:, None], batches.shape)
        return np.stack([tables.ravel(), batches.ravel()], axis=1)


def as_input(workload: Workload, ids: np.ndarray) -> KeyedJaggedTensor:
    """Ids int64 (tables, batch_size), one for each feature of a sample."""
    return KeyedJaggedTensor(
        keys=feature_names(workload),
        values=torch.from_numpy(ids.ravel()),
        lengths=torch.ones(ids.size, dtype=torch.int64),
    )
