"""The models that are trained: a DLRM over this package's tables, over FBGEMM's, and over none."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
from common import contestants
from common.cold_store import collection
from common.contestants import LEARNING_RATE, feature_names, table_configs
from common.entries import OURS
from common.resident import anonymous_bytes
from common.workload import Workload
from parts.dlrm.figures import Figures
from parts.dlrm.inputs import Inputs
from parts.dlrm.race import EMBEDDING_BAG, FBGEMM, MANAGED_CACHING, Racer

DENSE_FEATURES = 13
HIDDEN_UNITS = [512, 256]
# Dense features and labels come again after so many batches.
DISTINCT_LABELS = 16
# Steps of the dense part, by which torch takes what memory it wants, before a store's memory is told from it.
STEPS_BEFORE_STORE = 3
READ_PER_CALL = 65_536


def build(racer: Racer, workload: Workload, inputs: Inputs, directory: Path) -> Training:
    """The training that `racer` names; `directory` is for its store, if it has one."""
    if racer.library == OURS:
        return StoreTraining(racer, workload, inputs, directory)
    training = Training(racer, workload, inputs)
    if racer.library == EMBEDDING_BAG:
        training.use_bags(workload)
    elif racer.library == FBGEMM:
        location = EmbeddingLocation.MANAGED_CACHING if racer.rows_in == MANAGED_CACHING else None
        training.use(contestants.fused_collection(racer, workload, torch.device(racer.device), location))
    return training


class Training:
    """A DLRM without tables, or with those that `use` gives it, and its way through the batches."""

    def __init__(self, racer: Racer, workload: Workload, inputs: Inputs) -> None:
        torch.manual_seed(workload.seed)
        self._device = torch.device(racer.device)
        # Rows that are in host memory are looked up by ids that are there, too.
        self._moves_ids = racer.library != OURS
        self._model = DLRM(
            embedding_bag_collection=FreeEmbeddings(workload),
            dense_in_features=DENSE_FEATURES,
            dense_arch_layer_sizes=[*HIDDEN_UNITS, workload.dim],
            over_arch_layer_sizes=[*HIDDEN_UNITS, 1],
        ).to(self._device)
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adagrad(self._model.parameters(), lr=LEARNING_RATE)
        ]
        self._feed = Feed(workload, inputs)
        self._batches: Iterator[Batch] = self._feed

    def use(self, tables: torch.nn.Module) -> None:
        """Has the model look up its embeddings there from now on."""
        self._model.sparse_arch.embedding_bag_collection = tables

    def use_bags(self, workload: Workload) -> None:
        """The same of torch's tables, on the model's device, with the optimizer that is fastest there."""
        tables = EmbeddingBagCollection(tables=table_configs(workload), device=self._device)
        for bag in tables.embedding_bags.values():
            bag.sparse = True
        self.use(tables)
        self._optimizers.append(torch.optim.SGD(tables.parameters(), lr=LEARNING_RATE))

    def go_to(self, batch: int) -> None:
        """Goes on with batch number `batch`. REQUIRES: rows of later ones are not being read yet."""
        self._feed.go_to(batch)

    def batch(self, _number: int) -> None:
        """Has the next batch ready."""
        self._feed.make(1)

    def step(self, _batch: None) -> None:
        """Takes the next batch and trains on it."""
        batch = next(self._batches)
        dense = batch.dense_features.to(self._device, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        features = batch.sparse_features
        if self._moves_ids:
            features = features.to(self._device, non_blocking=True)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        logits = self._model(dense, features).squeeze(-1)
        binary_cross_entropy_with_logits(logits, labels).backward()
        for optimizer in self._optimizers:
            optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # what is timed has happened


class StoreTraining(Training):
    """A DLRM over this package's tables, with the rows of a checkpoint."""

    def __init__(self, racer: Racer, workload: Workload, inputs: Inputs, directory: Path) -> None:
        super().__init__(racer, workload, inputs)
        for _ in range(STEPS_BEFORE_STORE):
            self.step(None)
        self._workload = workload
        self._depth = racer.depth
        self._without_store = anonymous_bytes()
        self._store = damo.EmbeddingStore(
            directory,
            memory_budget=racer.budget(workload),
            restore=inputs.checkpoint,
            options=damo.StoreOptions(num_threads=racer.threads, direct_io=racer.direct_io),
        )
        self._collection = collection(self._store, workload, self._device)
        self.use(self._collection)

    def read(self, table: int, share: float) -> None:
        """Reads the most popular `share` of a table's rows, which takes them into memory."""
        popular = self._workload.by_popularity(table)[: round(self._workload.rows * share)]
        for ids in torch.split(torch.from_numpy(np.sort(popular)), READ_PER_CALL):
            self._collection.tables()[table].get(ids)

    def warm_up(self, steps: int) -> None:
        """Trains the tables without the dense part."""
        for batch in itertools.islice(self._feed, steps):
            values = self._collection(batch.sparse_features).values()
            torch.autograd.backward(values, torch.full_like(values, 1e-6))

    def batch(self, _number: int) -> None:
        """Has the next batch ready, and those whose rows are read ahead."""
        self._feed.make(1 + self._depth)
        if self._depth > 0 and self._batches is self._feed:
            self._batches = iter(damo.PrefetchIterator(self._feed, self._model, depth=self._depth))

    def figures(self) -> Figures:
        stats = self._store.stats()
        tables = stats.tables.values()
        return Figures(
            hits=sum(table.hits for table in tables),
            misses=sum(table.misses for table in tables),
            rows_read=stats.rows_read,
            rows_written=stats.rows_written,
            cached_rows=sum(table.cached_rows for table in tables),
            memory_bytes=stats.memory_bytes,
            growth_bytes=anonymous_bytes() - self._without_store,
        )


class FreeEmbeddings(torch.nn.Module):
    """Embeddings that cost nothing: the same ones for every batch. Their gradient is computed, and dropped."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self._configs = table_configs(workload)
        self._keys = feature_names(workload)
        self.register_buffer("_values", 0.01 * torch.randn(workload.batch_size, workload.tables * workload.dim))

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self._configs

    def forward(self, _features: KeyedJaggedTensor) -> KeyedTensor:
        values = self._values.detach().requires_grad_()  # a new leaf: gradients of earlier steps are not added up
        return KeyedTensor(self._keys, [config.embedding_dim for config in self._configs], values)


class Feed:
    """An endless iterator over the batches. Those that `make` has made cost `next` nothing."""

    def __init__(self, workload: Workload, inputs: Inputs) -> None:
        generator = torch.Generator().manual_seed(workload.seed)
        size = workload.batch_size
        self._ids = np.load(inputs.batches, mmap_mode="r")
        self._keys = feature_names(workload)
        self._lengths = torch.full((workload.tables * size,), workload.bag)
        self._dense = torch.randn(DISTINCT_LABELS, size, DENSE_FEATURES, generator=generator)
        self._labels = (torch.rand(DISTINCT_LABELS, size, generator=generator) < 0.25).float()
        self.go_to(0)

    def go_to(self, number: int) -> None:
        """The next batch is number `number`; after the last comes the first."""
        self._made: deque[Batch] = deque()
        self._numbers = itertools.count(number)

    def make(self, count: int) -> None:
        """Has the next `count` batches ready, new objects each time: nothing that one computes is kept for another."""
        while len(self._made) < count:
            number = next(self._numbers)
            ids = torch.from_numpy(self._ids[number % len(self._ids)].reshape(-1).astype(np.int64))
            features = KeyedJaggedTensor(keys=self._keys, values=ids, lengths=self._lengths)
            label = number % DISTINCT_LABELS
            self._made.append(Batch(self._dense[label], features, self._labels[label]))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.make(1)
        return self._made.popleft()
