"""What several test files need: small batches, stores that evict everything, and the rows of a store as bytes."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import _core

# The engine evicts all rows after each call that leaves more than so many bytes of them.
A_HANDFUL_OF_ROWS = 1024

# Python 3.10 has no ONNX Runtime that pyproject.toml admits.
WITHOUT_ONNXRUNTIME = importlib.util.find_spec("onnxruntime") is None
needs_onnxruntime = pytest.mark.skipif(WITHOUT_ONNXRUNTIME, reason="needs ONNX Runtime")


def weekly(cases: Iterable[object]) -> list[object]:
    """Cases of a parametrized test that are more of what its others try: left out but once a week."""
    return [pytest.param(case, marks=[pytest.mark.slow, pytest.mark.weekly]) for case in cases]


def small_store(path: str | os.PathLike[str] | None = None, *, seed: int = 0, **options: object) -> damo.EmbeddingStore:
    """A store of the least budget: in memory without a path. `options` are those of StoreOptions."""
    options = {"num_threads": 2, "backend": "memory" if path is None else "rocksdb", **options}
    return damo.EmbeddingStore(path, memory_budget="64MiB", seed=seed, options=damo.StoreOptions(**options))


@contextlib.contextmanager
def directory_in_memory() -> Iterator[Path]:
    """A temporary directory where syncing costs nothing, if there is such a place: on a busy disk it takes seconds."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        yield Path(directory)


def copy_rows(source: torch.nn.Module, target: damo.EmbeddingBagCollection) -> None:
    """Makes row i of each of TorchRec's tables the row with id i of ours."""
    for table in target.tables():
        weight = source.embedding_bags[table.name].weight.detach()
        table.set(torch.arange(len(weight)), weight)


def kjt(features: dict[str, Sequence[Sequence[int]]], weights: Sequence[float] | None = None) -> KeyedJaggedTensor:
    """A KeyedJaggedTensor of bags of ids, given by feature, then sample."""
    bags = [bag for feature in features.values() for bag in feature]
    return KeyedJaggedTensor(
        keys=list(features),
        values=torch.tensor([i for bag in bags for i in bag], dtype=torch.int64),
        lengths=torch.tensor([len(bag) for bag in bags], dtype=torch.int64),
        weights=None if weights is None else torch.tensor(weights),
    )


def random_kjt(
    generator: torch.Generator, keys: Sequence[str], batch: int, ids: int, longest: int = 4, weighted: bool = False
) -> KeyedJaggedTensor:
    """Bags of 0 to `longest` ids below `ids`, with duplicates."""
    lengths = torch.randint(0, longest + 1, (len(keys) * batch,), generator=generator)
    n = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.randint(0, ids, (n,), generator=generator),
        lengths=lengths,
        weights=torch.rand(n, generator=generator) + 0.5 if weighted else None,
    )


def config(name: str, dim: int = 8, features: Sequence[str] = (), **more: object) -> EmbeddingBagConfig:
    """A table's config; its feature has the table's name unless features are given."""
    values = {"num_embeddings": 100, **more}
    return EmbeddingBagConfig(name=name, embedding_dim=dim, feature_names=list(features) or [name], **values)


def scan(store: damo.EmbeddingStore, table: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A table's rows in id order, up to 1000 at a time: ids int64 (n,), and payloads uint8 (n, size).

    A payload is the bytes of weights, optimizer state, last step and count.
    """
    index = store.table(table).opened.index
    size = store.session.engine.payload_size(index)
    scan = _core.Scan(store.session.engine, index)
    while True:
        ids = torch.empty(1000, dtype=torch.int64)
        data = torch.empty(1000, size, dtype=torch.uint8)
        n = scan.next_payloads(ids.data_ptr(), data.data_ptr(), 1000)
        if n == 0:
            return
        yield ids[:n], data[:n]


def payloads(store: damo.EmbeddingStore, table: str) -> dict[int, bytes]:
    """All of a table's payloads, by id."""
    rows: dict[int, bytes] = {}
    for ids, data in scan(store, table):
        rows.update(zip(ids.tolist(), (row.tobytes() for row in data.numpy()), strict=True))
    return rows
