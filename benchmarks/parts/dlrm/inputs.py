"""What every contestant begins with: a store whose rows have been trained, and a long row of batches to come."""

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import damo_torchrec as damo
from common.cold_store import as_input, collection, load, settle
from common.program import RefusedError
from common.workload import Workload
from parts.dlrm.race import builder

LOADING_BUDGET = 1 << 30
DESCRIPTION = "inputs.json"
# Batches of the history that are in memory at a time.
HISTORY_PART = 250


@dataclass(frozen=True)
class Inputs:
    """Files that contestants only read.

    Args:
        directory: where they are, and where a contestant may have directories on the same file system.
        batches: a NumPy file, int32 (batches, tables, batch_size, 1).
        checkpoint: of a store with all rows, which have counted their uses in a training.
    """

    directory: Path
    batches: Path
    checkpoint: Path


@contextmanager
def inputs(workload: Workload, history: int, batches: int, keep: Path | None) -> Iterator[Inputs]:
    """Makes them; in the directory `keep` they stay, and are taken as they are if they are there already.

    Args:
        workload: tables and batches.
        history: steps of training that the rows have behind them, on other batches than those that are made.
        batches: that are made, at least.
        keep: None for a directory that is removed in the end.

    Raises:
        RefusedError: those in `keep` are others.
    """
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="damo-benchmark-") as directory:
            yield make(Path(directory), workload, history, batches)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if (keep / DESCRIPTION).exists():
        yield kept(keep, workload, history, batches)
    elif any(keep.iterdir()):
        raise RefusedError(
            f"--data: {keep} is not empty, but has no {DESCRIPTION}: remove it, or name another directory"
        )
    else:
        yield make(keep, workload, history, batches)


def kept(directory: Path, workload: Workload, history: int, batches: int) -> Inputs:
    """Those that are there, if they are as asked for."""
    there = json.loads((directory / DESCRIPTION).read_text())
    theirs = Workload(**there["workload"])
    if (theirs, there["history"]) != (workload, history) or there["batches"] < batches:
        raise RefusedError(
            f"--data: {directory} has {there['batches']} batches after {there['history']} steps of {theirs}, seed "
            f"{theirs.seed}; needed are {batches} after {history} of {workload}, seed {workload.seed}: remove it, or "
            "name another directory"
        )
    return Inputs(directory, batches_in(directory), directory / there["checkpoint"])


def make(directory: Path, workload: Workload, history: int, batches: int) -> Inputs:
    with tqdm(total=workload.tables, desc="making batches", unit="table", leave=False, disable=None) as bar:
        write_batches(batches_in(directory), workload, batches, bar)
    store = (directory / "store").absolute()
    rows = workload.tables * workload.rows
    with tqdm(total=rows, desc="building the store", unit="row", unit_scale=True, leave=False, disable=None) as bar:
        load(store, workload, LOADING_BUDGET, bar.update)
    with tqdm(total=history, desc="training its rows", unit="step", leave=False, disable=None) as bar:
        checkpoint = train(store, workload, history, bar)
    description = {
        "workload": asdict(workload),
        "history": history,
        "batches": batches,
        "checkpoint": str(checkpoint.relative_to(directory.absolute())),
    }
    (directory / DESCRIPTION).write_text(json.dumps(description) + "\n")  # last: then all is there
    return Inputs(directory, batches_in(directory), checkpoint)


def batches_in(directory: Path) -> Path:
    return directory / "batches.npy"


def write_batches(path: Path, workload: Workload, count: int, bar: Any) -> None:
    batches = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=shape(workload, count))
    fill(batches, workload, 0, bar)


def train(store_path: Path, workload: Workload, steps: int, bar: Any) -> Path:
    """Has every row count its uses, which the cache goes by, and returns the checkpoint.

    With all rows in memory that takes a fraction of the time that contestants would need, each for itself.
    """
    gradient = torch.full((workload.batch_size, workload.tables * workload.dim), 1e-6)
    with damo.EmbeddingStore(store_path, memory_budget=builder().budget(workload)) as store:
        tables = collection(store, workload)
        for part, first in enumerate(range(0, steps, HISTORY_PART), start=1):
            batches = np.empty(shape(workload, min(HISTORY_PART, steps - first)), dtype=np.int32)
            fill(batches, workload, part)
            for batch in batches:
                ids = batch[:, :, 0].astype(np.int64)
                torch.autograd.backward(tables(as_input(workload, ids)).values(), gradient)
                bar.update()
        bar.set_description("making its checkpoint")
        store.flush()
        settle(store)
        return store.checkpoint()


def shape(workload: Workload, batches: int) -> tuple[int, ...]:
    return batches, workload.tables, workload.batch_size, workload.bag


def fill(batches: np.ndarray, workload: Workload, part: int, bar: Any = None) -> None:
    """Makes the batches of a part of the workload; `bar` gets each table that is done."""

    def fill_table(table: int) -> None:
        batches[:, table] = workload.feature(table, len(batches), part)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for _ in threads.map(fill_table, range(workload.tables)):
            if bar is not None:
                bar.update()
