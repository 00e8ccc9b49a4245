"""A model whose rows come and go, spread over ranks, and what of them lives: for tests of one rule over all ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
import spread
from lives_model import Lives

IDS = 400

Living = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Stream:
    """Batches that depend on their step alone, of which each rank has a part, and how long rows live.

    Args:
        options: of the table.
        batch: samples of a global batch.
        longest: ids of a sample, at most.
        sequences: whether rows are not pooled.
        wrong_clocks: whether the clocks of ranks but the first are wrong.
    """

    options: damo.TableOptions
    batch: int = 4
    longest: int = 1
    sequences: bool = False
    wrong_clocks: bool = False

    def samples(self, step: int) -> list[list[int]]:
        """Ids of each sample. Some come back, most do not."""
        generator = torch.Generator().manual_seed(step)
        drawn = torch.rand(self.batch, self.longest + 1, generator=generator)
        lengths = (drawn[:, 0] * (self.longest + 1)).long().tolist()
        ids = (drawn[:, 1:] ** 2 * IDS).long() + step % 3
        return [row[:n] for row, n in zip(ids.tolist(), lengths, strict=True)]

    def ids(self, step: int) -> list[int]:
        return [id for sample in self.samples(step) for id in sample]

    def time(self, step: int) -> float:
        return 10.0 * step

    def features(self, step: int, rank: int, size: int) -> KeyedJaggedTensor:
        mine = self.samples(step)[self.batch * rank // size : self.batch * (rank + 1) // size]
        lengths = torch.tensor([len(sample) for sample in mine], dtype=torch.int64)
        values = torch.tensor([id for sample in mine for id in sample], dtype=torch.int64)
        return KeyedJaggedTensor(["f"], values, lengths=lengths)


def world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def model_over(stream: Stream, store: damo.EmbeddingStore) -> nn.Module:
    kind, config = (
        (damo.EmbeddingCollection, EmbeddingConfig)
        if stream.sequences
        else (damo.EmbeddingBagCollection, EmbeddingBagConfig)
    )
    table = config(name="t", embedding_dim=2, num_embeddings=IDS, feature_names=["f"])
    sparse = kind([table], torch.optim.SGD, {"lr": 0.1}, store=store, table_options={"t": stream.options})
    wrapped = spread.Wrapped(sparse)
    if not dist.is_initialized():
        return wrapped
    return DistributedModelParallel(wrapped, sharders=damo.distributed.sharders())


def train(stream: Stream, store: damo.EmbeddingStore, first: int, last: int) -> Iterator[tuple[Living, Living]]:
    """Trains the steps from `first` up to `last`; yields after each this rank's rows, and ids that were seen."""
    rank, size = world()
    model = model_over(stream, store)
    for step in range(first, last):
        wrong = rank * (1e6 + 77 * step) if stream.wrong_clocks else 0
        store.clock = itertools.repeat(stream.time(step) + wrong).__next__
        model(stream.features(step, rank, size)).sum().backward()
        yield living(store)


def living(store: damo.EmbeddingStore) -> tuple[Living, Living]:
    ids = torch.arange(IDS + 3)
    known = store.table("t").metadata(ids)
    rows, seen = {}, {}
    for id, exists, updates, last, sightings in zip(
        ids.tolist(),
        known.exists.tolist(),
        known.updates.tolist(),
        known.last_step.tolist(),
        known.sightings.tolist(),
        strict=True,
    ):
        if exists:
            rows[id] = (last, updates)
        elif sightings:
            seen[id] = (last, sightings)
    assert len(store.table("t")) == len(rows)
    return rows, seen


def of_all(ranks: list[tuple[Living, Living]]) -> tuple[Living, Living]:
    """What all ranks have. Each id is on one of them."""
    rows: Living = {}
    seen: Living = {}
    for its_rows, its_seen in ranks:
        assert not rows.keys() & its_rows.keys()
        rows.update(its_rows)
        seen.update(its_seen)
    return rows, seen


def as_model(model: Lives, stream: Stream, first: int, last: int) -> list[tuple[Living, Living]]:
    """What a plain model has after each of these steps."""
    found = []
    for step in range(first, last):
        model.update(stream.ids(step), stream.time(step))
        found.append((dict(model.rows), dict(model.seen)))
    return found


def trained(rank: int, stream: Stream, last: int) -> list[tuple[Living, Living]]:
    with spread.new_store() as store:
        return list(train(stream, store, 1, last))


def trained_here(stream: Stream, last: int) -> list[Any]:
    """The same in one process, without a process group."""
    return trained(0, stream, last)


def continued(rank: int, stream: Stream, root: Any, last: int, **opening: Any) -> list[tuple[Living, Living]]:
    """Trains the steps from where the ranks' stores were closed up to `last`, and closes them."""
    with damo.distributed.open_store(root, memory_budget="64MiB", **opening) as store:
        return list(train(stream, store, store.step + 1, last))


def respread(rank: int, stream: Stream, root: Any, last: int) -> list[tuple[Living, Living]]:
    """The same with rows of another number of ranks."""
    return continued(rank, stream, root, last, respread=True)
