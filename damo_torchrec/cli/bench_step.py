"""What ``damo-torchrec bench`` measures: forward and backward of an embedding collection over a store."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.optim import RowWiseAdagrad

from damo_torchrec.errors import ContinuedRowsWarning
from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection
from damo_torchrec.options import StoreOptions
from damo_torchrec.progress import Progress, counting
from damo_torchrec.store.embedding_store import EmbeddingStore

FEATURES = 8
_AT_A_TIME = 50_000
_LEAST_STEPS = 3
_KEYS = [f"f{feature}" for feature in range(FEATURES)]


@dataclass(frozen=True)
class Case:
    """A table for each of `FEATURES` features, of as many rows each, one id of each in a sample.

    Args:
        rows: of all tables together.
        dim: of a row.
        batch_size: samples of a step.
        seconds: so long steps are measured, and as long before to warm up.
    """

    rows: int
    dim: int
    batch_size: int
    seconds: float

    @property
    def rows_each(self) -> int:
        """Rows of one table."""
        return max(self.rows // FEATURES, 1)

    @property
    def bytes_of_rows(self) -> int:
        """About what all rows take in memory, with optimizer state, headers and index."""
        return self.rows_each * FEATURES * (4 * self.dim + 96)


@dataclass(frozen=True)
class Result:
    """What was measured with one budget.

    Args:
        memory_budget: bytes.
        steps: how many.
        step_seconds: the median of a step.
        step_seconds_p99: its 99th percentile.
        samples_per_second: of all steps together.
        ids_in_step: different ids of a step, on average.
        rows_read_in_step: rows that were not in memory, on average.
    """

    memory_budget: int
    steps: int
    step_seconds: float
    step_seconds_p99: float
    samples_per_second: float
    ids_in_step: float
    rows_read_in_step: float


def check_budget(path: Path, memory_budget: int) -> None:
    """Raises ValueError if no store can be opened with so little."""
    with _opened(path, memory_budget):
        pass


def fill_and_measure(path: Path, case: Case, memory_budget: int, progress: Progress) -> Result:
    """Makes a store with all rows, which stay in memory as far as the budget goes, and trains."""
    with _opened(path, memory_budget) as store:
        model = _collection(store, case)
        advance = counting(progress, "rows made", case.rows_each * FEATURES)
        for feature in range(FEATURES):
            table = store.table(f"t{feature}")
            for first in range(0, case.rows_each, _AT_A_TIME):
                ids = _ids(np.arange(first, min(first + _AT_A_TIME, case.rows_each)))
                table.set(ids, torch.full((len(ids), case.dim), 0.01))
                advance(len(ids))
        return _measured(store, model, case)


def measure(path: Path, case: Case, memory_budget: int) -> Result:
    """Opens a store that is there, and trains."""
    with _opened(path, memory_budget) as store:
        return _measured(store, _collection(store, case), case)


def _measured(store: EmbeddingStore, model: EmbeddingBagCollection, case: Case) -> Result:
    random = np.random.default_rng(0)
    _train(model, case, random)
    before = store.stats().rows_read
    taken, ids = _train(model, case, random)
    rows_read = store.stats().rows_read - before
    return Result(
        memory_budget=store.stats().memory_budget,
        steps=len(taken),
        step_seconds=float(np.median(taken)),
        step_seconds_p99=float(np.quantile(taken, 0.99)),
        samples_per_second=len(taken) * case.batch_size / sum(taken),
        ids_in_step=ids / len(taken),
        rows_read_in_step=rows_read / len(taken),
    )


@contextlib.contextmanager
def _opened(path: Path, memory_budget: int) -> Iterator[EmbeddingStore]:
    store = EmbeddingStore(path, memory_budget=memory_budget, seed=0, options=StoreOptions(progress=False))
    with store, warnings.catch_warnings():
        warnings.simplefilter("ignore", ContinuedRowsWarning)  # which is what is wanted here
        yield store


def _collection(store: EmbeddingStore, case: Case) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=case.dim, num_embeddings=case.rows_each, feature_names=[key])
        for i, key in enumerate(_KEYS)
    ]
    return EmbeddingBagCollection(tables, RowWiseAdagrad, {"lr": 0.01}, store=store)


def _train(model: EmbeddingBagCollection, case: Case, random: np.random.Generator) -> tuple[list[float], int]:
    """The seconds of each step, and the different ids of all of them."""
    taken: list[float] = []
    ids = 0
    lengths = torch.ones(FEATURES * case.batch_size, dtype=torch.int64)
    while sum(taken) < case.seconds or len(taken) < _LEAST_STEPS:
        # By Zipf's law: the row of rank k as often as 1 in k.
        ranks = (case.rows_each ** random.random((FEATURES, case.batch_size))).astype(np.int64) - 1
        ids += sum(len(np.unique(of_feature)) for of_feature in ranks)
        batch = KeyedJaggedTensor(_KEYS, _ids(ranks.ravel()), lengths=lengths)
        start = time.perf_counter()
        model(batch).values().sum().backward()
        taken.append(time.perf_counter() - start)
    return taken, ids


def _ids(ranks: np.ndarray) -> torch.Tensor:
    """An id of 64 bits for each rank, by a multiplication that no two share the product of."""
    return torch.from_numpy((ranks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64))
