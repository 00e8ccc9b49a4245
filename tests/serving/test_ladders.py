"""Servers drop what training dropped, wherever they are: against a store that is a dictionary."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.checkpoints.folding import fold_deltas
from damo_torchrec.checkpoints.ladder import CLASSES, Ladder
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.serving.updates import Updates
from plain_store import Moment, PlainStore, Policy, Row
from publishing_model import ARGUMENTS, IDS, REQUEST, WEIGHT, Model

EVERY_ID = range(IDS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to serve, with rows of several counts and steps."""
    path = tmp_path_factory.mktemp("exported")
    with damo.EmbeddingStore(path / "store", memory_budget="64MiB") as store:
        model = Model(store)
        for step in range(8):
            features = model_input([i for i in EVERY_ID if i % (step + 1) == 0 and i < 9])
            model(features).sum().backward()
        damo.serving.export(model, ARGUMENTS, path / "served")
    return path / "served"


def model_input(ids: list[int]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["f"], torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))


def plain_store_of(path: Path) -> PlainStore:
    with damo.EmbeddingStore(path, read_only=True, memory_budget="64MiB") as store:
        table = store.table("t")
        ids, weights = table.to_torch()
        known = table.metadata(ids)
        rows = zip(weights.tolist(), known.last_step.tolist(), known.updates.tolist(), strict=True)
        iterations = store.step
    manifest = Manifest.read(path)
    return PlainStore(
        {int(i): Row(tuple(w), last, count) for i, (w, last, count) in zip(ids, rows, strict=True)},
        iterations,
        [Moment(manifest.id, iterations)],
    )


def check(server: damo.serving.Predictor, store: PlainStore) -> None:
    rows = [store.rows[i].weights if i in store.rows else (0.0, 0.0) for i in EVERY_ID]
    np.testing.assert_allclose(server.predict(REQUEST)["output"][:, 0], np.array(rows) @ WEIGHT, atol=1e-6)


def open_server(path: Path) -> damo.serving.Predictor:
    return damo.serving.Predictor(path, memory_budget="64MiB", num_threads=1)


class Run:
    """A random sequence of changes, and servers that follow them by any of the ways there are."""

    def __init__(self, seed: int, exported: Path, path: Path) -> None:
        self.random = random.Random(seed)
        self.exported, self.path = exported, path
        self.store = plain_store_of(exported)
        self.seed = Manifest.read(exported).seed
        self.policy = Policy.any(self.random)
        self.servers: list[tuple[damo.serving.Predictor, Moment]] = []
        self.last: list[Path] = []  # of deltas each of which goes on from the one before
        self.begins = [self.store.moments[0]]  # of each of these
        self.number = 0

    def weights(self) -> dict[int, tuple[float, ...]]:
        ids = self.random.sample(EVERY_ID, self.random.randrange(1, 5))
        return {i: (self.random.randrange(1, 9) / 4, self.random.randrange(8) / 4) for i in ids}

    def change(self) -> None:
        kind = self.random.random()
        if kind < 0.75:
            self.store.update(self.weights())
            self.store.raise_ladder(self.policy.ladder(self.store, self.random.choice([0, 0, 0, 128])))
        elif kind < 0.9:
            self.store.set(self.weights())
        else:
            self.store.delete(self.random.sample(EVERY_ID, 2))

    def new_path(self) -> Path:
        self.number += 1
        return self.path / f"delta-{self.number}"

    def follow(self) -> None:
        """Brings servers to a new state: from where they are, by the deltas since, or by these folded."""
        self.last.append(self.store.delta(self.new_path(), self.begins[-1], self.seed))
        self.begins.append(self.store.moments[-1])
        if len(self.servers) < 3:
            self.servers.append((open_server(self.exported), self.begins[0]))
        for n, (server, where) in enumerate(self.servers):
            way = self.random.choice(["wait", "one by one", "folded", "at once"])
            left = self.last[self.begins.index(where) :]
            if way == "wait":
                continue
            if way == "folded":
                left = [fold_deltas(left, self.new_path())]
            if way == "at once":
                left = [self.store.delta(self.new_path(), where, self.seed, now=self.begins[-1])]
            for delta in left:
                server.apply_delta(delta)
            self.servers[n] = (server, self.begins[-1])
            check(server, self.store)


@pytest.mark.parametrize("seed", range(12))
def test_servers_answer_as_the_store_for_every_id(seed: int, exported: Path, tmp_path: Path) -> None:
    run = Run(seed, exported, tmp_path)
    try:
        for _ in range(14):
            for _ in range(run.random.randrange(1, 9)):
                run.change()
            run.follow()
    finally:
        for server, _ in run.servers:
            server.close()


@pytest.fixture
def server(exported: Path) -> Iterator[damo.serving.Predictor]:
    with open_server(exported) as opened:
        yield opened


def test_dead_rows_are_unseen_before_anything_is_written(
    server: damo.serving.Predictor, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the middle of `apply_delta`."""
    store = plain_store_of(exported)
    store.update({3: (1.0, 2.0)})
    store.raise_ladder(Ladder.of_steps((9, 9, 8, 8, 2) + (0,) * (CLASSES - 5)))
    assert {3} < store.rows.keys() < set(range(9))
    monkeypatch.setattr(Updates, "complete", lambda _: None)
    server.apply_delta(store.delta(tmp_path / "delta", store.moments[0], Manifest.read(exported).seed))
    check(server, store)
