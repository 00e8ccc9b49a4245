"""A table that is loaded, opened and trained in a store on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchrec
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from common.resident import peak_bytes, reset_peak, resident_bytes
from parts.scale.case import Case

ROWS_PER_CALL = 65536
TABLE = "table"


def open_store(case: Case, path: Path | None) -> tuple[damo.EmbeddingStore, damo.EmbeddingBagCollection]:
    store = damo.EmbeddingStore(
        path,
        memory_budget=case.memory_budget,
        options=damo.StoreOptions(num_threads=case.threads, direct_io=case.direct_io),
    )
    config = EmbeddingBagConfig(
        name=TABLE, embedding_dim=case.dim, num_embeddings=case.rows, feature_names=feature_names(case)
    )
    collection = damo.EmbeddingBagCollection(
        tables=[config],
        optimizer_type=torchrec.optim.RowWiseAdagrad,
        optimizer_kwargs={"lr": 0.01},
        store=store,
    )
    return store, collection


def feature_names(case: Case) -> list[str]:
    return [f"feature_{number}" for number in range(case.features)]


def load(case: Case, path: Path, on_rows: Callable[[int], object]) -> None:
    """Makes a store with all rows, and closes it."""
    weights = torch.randn(ROWS_PER_CALL, case.dim, generator=torch.Generator().manual_seed(case.seed))
    store, _ = open_store(case, path)
    with store:
        for ids in torch.arange(case.rows).split(ROWS_PER_CALL):
            store.table(TABLE).set(ids, weights[: len(ids)])
            on_rows(len(ids))


class Opener:
    """Opens the store at `path`, once."""

    def __init__(self, case: Case, path: Path) -> None:
        self._case = case
        self._path = path

    def open(self, from_disk: bool) -> float:
        """Seconds until a first sample has been looked up; with none of the files in the page cache, if `from_disk`."""
        if from_disk:
            for file in self._path.rglob("*"):
                drop_from_page_cache(file)
        lengths = torch.ones(self._case.features, dtype=torch.int64)
        sample = KeyedJaggedTensor(keys=feature_names(self._case), values=torch.arange(len(lengths)), lengths=lengths)
        start = time.perf_counter()
        store, collection = open_store(self._case, self._path)
        collection(sample)
        seconds = time.perf_counter() - start
        store.close()
        return seconds


def drop_from_page_cache(file: Path) -> None:
    if not file.is_file():
        return
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # else what is not yet on the disk stays
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class Trained:
    """Trains the table in the store at `path`, after as many steps as fill the store's memory."""

    def __init__(self, case: Case, path: Path) -> None:
        self._case = case
        self._lengths = torch.ones(case.ids_per_batch, dtype=torch.int64)
        self._gradient = torch.randn(
            case.batch_size, case.features * case.dim, generator=torch.Generator().manual_seed(case.seed)
        )
        self._gradient /= case.batch_size
        self._use_another_store()
        self._base = resident_bytes()
        reset_peak()
        self._store, self._collection = open_store(case, path)
        for number in range(case.steps_to_fill):
            self.step(self._input(number))

    def batch(self, number: int) -> KeyedJaggedTensor:
        """The input of a step after those of the constructor."""
        return self._input(self._case.steps_to_fill + number)

    def step(self, batch: KeyedJaggedTensor) -> None:
        """Lookup, backward and update."""
        torch.autograd.backward(self._collection(batch).values(), self._gradient)

    def counts(self) -> tuple[int, int]:
        """Hits and misses so far."""
        stats = self._store.stats().tables[TABLE]
        return stats.hits, stats.misses

    def growth(self) -> int:
        """The most bytes that the process has grown by since the store was opened, or since the last call."""
        growth = peak_bytes() - self._base
        reset_peak()
        return growth

    def checkpoint(self) -> float:
        """Seconds that one takes."""
        start = time.perf_counter()
        self._store.checkpoint()
        return time.perf_counter() - start

    def _input(self, number: int) -> KeyedJaggedTensor:
        ids = torch.from_numpy(self._case.batch(number))
        return KeyedJaggedTensor(keys=feature_names(self._case), values=ids, lengths=self._lengths)

    def _use_another_store(self) -> None:
        """Has the process load and allocate what it does once, whatever the store."""
        store, self._collection = open_store(self._case, None)
        with store:
            self.step(self._input(0))
