"""A model whose rows all are in memory, and its checkpoints."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import damo_torchrec as damo
from common.cold_store import ROWS_PER_CALL, as_input, collection, payload_bytes, settle
from common.resident import peak_bytes, reset_peak, resident_bytes
from common.workload import Workload

HIDDEN_UNITS = (512, 256)
WARM_UP_STEPS = 20
KEEP = 3


class Checkpoints:
    """Trains, and makes checkpoints. A context manager, which closes the store.

    Args:
        directory: for the store.
        workload: its tables.
        memory_budget: that holds all rows, in bytes.
        threads: of the store and of torch.
    """

    def __init__(self, directory: Path, workload: Workload, memory_budget: int, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(workload.seed)
        self._workload = workload
        self._path = directory / "store"
        self._budget = memory_budget
        columns = workload.tables * workload.dim
        self._dense = torch.nn.Sequential(
            torch.nn.Linear(columns, HIDDEN_UNITS[0]),
            torch.nn.ReLU(),
            torch.nn.Linear(*HIDDEN_UNITS),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN_UNITS[1], 1),
        )
        self._optimizer = torch.optim.SGD(self._dense.parameters(), lr=0.01)
        self._batches = [as_input(workload, ids) for ids in workload.batches()[..., 0]]
        for _ in range(WARM_UP_STEPS):  # by which torch takes what memory it wants
            self._dense_step(torch.zeros(workload.batch_size, columns))
        self._resident_without = resident_bytes()
        options = damo.StoreOptions(num_threads=threads)
        self._store = damo.EmbeddingStore(self._path, memory_budget=memory_budget, options=options)
        self._ebc = collection(self._store, workload)
        self._model = torch.nn.ModuleDict({"tables": self._ebc, "dense": self._dense})
        self._names = itertools.count()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def make_all_dirty(self) -> int:
        """Changes every row; returns how many bytes they are."""
        for rows in self._store.tables().values():
            for ids in torch.split(torch.arange(self._workload.rows), ROWS_PER_CALL):
                rows.set(ids, torch.randn(len(ids), self._workload.dim))
        return self._workload.tables * self._workload.rows * payload_bytes(self._workload)

    def stall(self, background: bool, steps: int) -> dict[str, Any]:
        """One checkpoint of rows that all have changed: what it does to the steps."""
        self.make_all_dirty()
        for step in range(WARM_UP_STEPS):
            self._step(step)
        before = [self._timed(lambda step=step: self._step(step)) for step in range(steps)]
        reset_peak()
        path = self._path.parent / f"checkpoint_{next(self._names)}"
        began = time.perf_counter()
        if background:
            # The step that begins it counts as a whole.
            during = [self._timed(lambda: self._begin(path))]
            for step in itertools.count():
                if self._saving.done():
                    break
                during.append(self._timed(lambda step=step: self._step(step)))
            self._saving.result()
        else:
            during = [self._timed(lambda: (damo.save_model(self._model, path), self._step(0)))]
        seconds = time.perf_counter() - began
        median = statistics.median(before)
        peak = peak_bytes()
        settle(self._store)
        return {
            "background": background,
            "seconds": seconds,
            "steps": len(during),
            "median": median,
            "longest": max(during),
            "excess": sum(max(step - median, 0.0) for step in during),
            "over_budget_bytes": peak - self._resident_without - self._budget,
        }

    def increments(self, changed: float, checkpoints: int) -> list[dict[str, Any]]:
        """Checkpoints between which so many of the rows change, of which the newest few are kept."""
        manager = damo.CheckpointManager(self._path.parent / "kept", every_steps=1, keep=KEEP)
        random = np.random.default_rng(self._workload.seed)
        known = inodes(self._path)
        results = []
        for number in range(checkpoints + 1):
            for rows in self._store.tables().values():
                ids = random.choice(self._workload.rows, max(1, int(changed * self._workload.rows)), replace=False)
                rows.set(torch.from_numpy(ids), torch.randn(len(ids), self._workload.dim))
            began = time.perf_counter()
            manager.save(self._model, number)
            manager.wait()
            seconds = time.perf_counter() - began
            newest = manager.checkpoints()[-1]
            files = inodes(newest)
            results.append(
                {
                    "changed": changed,
                    "seconds": seconds,
                    "new_bytes": sum(size for inode, size in files.items() if inode not in known),
                    "bytes": sum(files.values()),
                    "disk_bytes": sum((inodes(self._path) | inodes(manager.directory)).values()),
                }
            )
            known = files | inodes(self._path)
        return results[1:]  # the first holds what had changed before

    def open_again(self) -> float:
        """Seconds until the store is open."""
        began = time.perf_counter()
        store = damo.EmbeddingStore(self._path, memory_budget=self._budget)
        seconds = time.perf_counter() - began
        store.close()
        return seconds

    def _begin(self, path: Path) -> None:
        self._saving = damo.save_model_async(self._model, path)
        self._step(0)

    def _step(self, step: int) -> None:
        self._dense_step(self._ebc(self._batches[step % len(self._batches)]).values())

    def _dense_step(self, embeddings: torch.Tensor) -> None:
        self._optimizer.zero_grad()
        self._dense(embeddings).square().mean().backward()
        self._optimizer.step()

    @staticmethod
    def _timed(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began


def inodes(directory: Path) -> dict[int, int]:
    """Bytes of the files below, each once however many names it has, by inode."""
    found = {}
    for file in directory.rglob("*"):
        if file.is_file():
            status = file.stat()
            found[status.st_ino] = status.st_size
    return found
