"""The models that are timed: this package's tables, FBGEMM's and torch's, with the same ids and gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torchrec
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

import damo_torchrec as damo
from common.entries import Entry
from common.workload import Workload

LEARNING_RATE = 0.01
OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "RowWiseAdagrad": torchrec.optim.RowWiseAdagrad,
    "SparseAdam": torch.optim.SparseAdam,
}
ROWS_PER_CALL = 65536
# Bytes that a row in our cache may take besides weights and state.
ROW_OVERHEAD = 48


def build(entry: Entry, workload: Workload) -> Trainee:
    """The trainee that `entry` names, with all its rows in memory."""
    trainee: Trainee = BUILDERS[entry.library](entry, workload)
    return trainee


class Trainee(ABC):
    """Trains on a workload's batches, over and over, with one gradient."""

    def __init__(self, workload: Workload) -> None:
        self._ids = torch.from_numpy(workload.batches())
        generator = torch.Generator().manual_seed(workload.seed)
        self._gradient = torch.randn(workload.batch_size, workload.tables * workload.dim, generator=generator)
        self._gradient /= workload.batch_size

    def batch(self, number: int) -> Any:
        """The input of step `number`, new objects each time: nothing that an input computes is kept for the next."""
        return self._input(self._ids[number % len(self._ids)])

    @abstractmethod
    def _input(self, ids: torch.Tensor) -> Any:
        """Ids int64 (tables, batch_size, bag) as the model takes them."""

    @abstractmethod
    def step(self, batch: Any) -> None:
        """Lookup, backward and update."""


class Collection(Trainee):
    """A TorchRec collection that updates its rows in backward."""

    def __init__(self, workload: Workload, module: torch.nn.Module) -> None:
        super().__init__(workload)
        self._module = module
        self._keys = feature_names(workload)
        self._lengths = torch.full((workload.tables * workload.batch_size,), workload.bag)

    def _input(self, ids: torch.Tensor) -> KeyedJaggedTensor:
        return KeyedJaggedTensor(keys=self._keys, values=ids.flatten(), lengths=self._lengths)

    def step(self, batch: KeyedJaggedTensor) -> None:
        output: KeyedTensor = self._module(batch)
        torch.autograd.backward(output.values(), self._gradient)


class EmbeddingBags(Trainee):
    """One `torch.nn.EmbeddingBag(sparse=True)` for each table, and an optimizer of torch.

    Its ids come split by table and in the form without offsets: the least work that torch can have.
    """

    def __init__(self, entry: Entry, workload: Workload) -> None:
        super().__init__(workload)
        bags = [
            torch.nn.EmbeddingBag(workload.rows, workload.dim, mode="sum", sparse=True) for _ in range(workload.tables)
        ]
        self._bags = torch.nn.ModuleList(bags)
        self._optimizer = OPTIMIZERS[entry.optimizer](self._bags.parameters(), lr=LEARNING_RATE)

    def _input(self, ids: torch.Tensor) -> list[torch.Tensor]:
        return list(ids.unbind())

    def step(self, batch: list[torch.Tensor]) -> None:
        outputs = [bag(ids) for bag, ids in zip(self._bags, batch, strict=True)]
        torch.autograd.backward(torch.cat(outputs, dim=1), self._gradient)
        self._optimizer.step()
        self._optimizer.zero_grad()


def fbgemm(entry: Entry, workload: Workload) -> Trainee:
    """TorchRec's fused collection."""
    return Collection(workload, fused_collection(entry, workload))


def fused_collection(
    entry: Entry,
    workload: Workload,
    device: torch.device | None = None,
    location: EmbeddingLocation | None = None,
) -> FusedEmbeddingBagCollection:
    """TorchRec's, which is FBGEMM's table-batched embeddings.

    Args:
        entry: whose optimizer.
        workload: whose tables.
        device: of the outputs; None for the CPU.
        location: of the rows, where that is another than the device's memory.
    """
    return FusedEmbeddingBagCollection(
        tables=table_configs(workload),
        optimizer_type=OPTIMIZERS[entry.optimizer],
        optimizer_kwargs={"lr": LEARNING_RATE},
        device=device,
        location=location,
    )


def ours(entry: Entry, workload: Workload) -> Trainee:
    """This package's collection over a store on disk whose budget holds all rows."""
    rows = workload.tables * workload.rows
    budget = int(1.3 * (entry.table_bytes(workload) + ROW_OVERHEAD * rows)) + (256 << 20)
    store = damo.EmbeddingStore(
        memory_budget=budget,
        options=damo.StoreOptions(num_threads=entry.threads),
    )
    module = damo.EmbeddingBagCollection(
        tables=table_configs(workload),
        optimizer_type=OPTIMIZERS[entry.optimizer],
        optimizer_kwargs={"lr": LEARNING_RATE},
        store=store,
    )
    for table in module.tables():
        for ids in torch.split(torch.arange(workload.rows), ROWS_PER_CALL):
            table.set(ids, torch.randn(len(ids), workload.dim))
    for name, stats in store.stats().tables.items():
        if stats.cached_rows != workload.rows:
            raise RuntimeError(f"table {name} has {stats.cached_rows} of {workload.rows} rows in memory")
    return Collection(workload, module)


BUILDERS: dict[str, Callable[[Entry, Workload], Trainee]] = {
    "damo_torchrec": ours,
    "FBGEMM": fbgemm,
    "nn.EmbeddingBag": EmbeddingBags,
}


def feature_names(workload: Workload) -> list[str]:
    return [f"feature_{number}" for number in range(workload.tables)]


def table_configs(workload: Workload) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=f"table_{number}",
            embedding_dim=workload.dim,
            num_embeddings=workload.rows,
            feature_names=[feature],
        )
        for number, feature in enumerate(feature_names(workload))
    ]
