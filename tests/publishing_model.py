"""A trainer that publishes and may die anywhere, servers old and new, and a plain model of what these should answer.

By hand, for so many seconds: ``python tests/publishing_model.py 600``.
"""

import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.serving.refresh import refresh_dense
from damo_torchrec.serving.watcher import Watcher

IDS = 12
WEIGHT = (0.5, -0.25)
ARGUMENTS = (KeyedJaggedTensor(["f"], torch.arange(IDS), lengths=torch.ones(IDS, dtype=torch.int64)),)
REQUEST = {"features": ARGUMENTS[0]}
_OPERATIONS = ["rename", "replace", "mkdir", "unlink", "rmdir", "fsync", "open"]


@dataclass(frozen=True)
class Answers:
    """What everything served from one state answers: rows that are there, and the layer's bias."""

    rows: tuple[tuple[int, tuple[float, ...]], ...] = ()
    bias: float = 0.0

    def changed(self, rows: dict[int, tuple[float, ...]]) -> "Answers":
        return Answers(tuple(sorted(rows.items())), self.bias)

    def outputs(self) -> np.ndarray:
        rows = dict(self.rows)
        return np.array([self.bias + float(np.dot(rows.get(i, (0.0, 0.0)), WEIGHT)) for i in range(IDS)])


class Model(nn.Module):
    def __init__(self, store: damo.EmbeddingStore, bias: float = 0.0, **life: Any) -> None:
        super().__init__()
        config = EmbeddingBagConfig(name="t", embedding_dim=2, num_embeddings=IDS, feature_names=["f"])
        options = {"t": damo.TableOptions(initializer=damo.init.Constant(0.0), **life)}
        self.bags = damo.EmbeddingBagCollection(
            [config], torch.optim.SGD, {"lr": 0.5}, store=store, table_options=options
        )
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([WEIGHT, (0.0, 0.0)]))
            self.layer.bias.fill_(bias)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.layer(self.bags(features).values())


class Died(BaseException):
    """The process has ended, from where nothing of it happens any more."""


@contextmanager
def dying_at(operation: int) -> Iterator[None]:
    """Has the process die before its so many-th operation on files."""
    left = operation

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **keywords: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise Died
            return function(*args, **keywords)

        return wrapped

    with (
        mock.patch.multiple(os, **{name: wrap(getattr(os, name)) for name in _OPERATIONS}),
        mock.patch.object(io, "open", wrap(io.open)),
    ):
        yield


class Run:
    """One random sequence of calls.

    Args:
        seed: of what is random.
        path: an empty directory.
        graph: the dense part of any model.
        rows_die: whether the table's options say so, from any session on.
    """

    def __init__(self, seed: int, path: Path, graph: bytes, rows_die: bool = False) -> None:
        self.random = random.Random(seed)
        self.sessions_until_rows_die = self.random.randrange(3) if rows_die else 1000
        self.life: dict[str, Any] = {}
        self.path = path
        self.graph = graph
        self.keep = self.random.choice([None, 1, 2, 3])
        self.now = Answers()
        self.inside: dict[str, Answers] = {}  # of the store's own checkpoints, by path
        self.saved: dict[Path, Answers] = {}
        self.states: dict[str, Answers] = {}  # of published deltas, by id
        self.exports: dict[Path, Answers] = {}
        self.exported: Path | None = None
        self.servers: list[damo.serving.Predictor] = []
        self.names = 0
        self.lost = 0
        self.history: list[str] = []

    # -------------------------------------------------------------- the trainer

    def session(self) -> None:
        """From an opening to an end, in order or not."""
        self.store = damo.EmbeddingStore(self.path / "store", memory_budget="64MiB")
        self.now = self.inside.get(self.store.checkpoints()[-1].name, Answers())
        self.note_inside()
        if self.sessions_until_rows_die <= 0:
            self.life = self.any_life()
        self.sessions_until_rows_die -= 1
        self.model = Model(self.store, self.now.bias, **self.life)
        self.publisher: damo.serving.DeltaPublisher | None = None
        self.history.append(f"open at step {self.store.step}")
        actions = [self.train, self.train, self.set, self.delete, self.edit_dense, self.checkpoint, self.save]
        actions += [self.export, self.publish, self.publish, self.publish, self.restore]
        try:
            for _ in range(self.random.randrange(1, 9)):
                action = self.random.choice(actions)
                self.history.append(action.__name__)
                if self.random.random() < 0.15:
                    with dying_at(self.random.randrange(60)):
                        action()
                else:
                    action()
                self.note_expired()
                if action == self.publish:
                    self.look(current=True)
            if self.random.random() < 0.3:
                raise Died
            self.store.close()
            self.note_inside()
            self.history.append("close")
        except Died:
            self.history.append("die")
            self.store.session.give_up_rows()
            self.note_inside()
        self.note_deltas()

    def any_life(self) -> dict[str, Any]:
        """Options by which rows die, often more than one at a time."""
        expire = [damo.Idle(steps=self.random.choice([1, 3, 8]))]
        if self.random.random() < 0.5:
            expire.append(damo.Idle(steps=1, below_count=2))
        most = self.random.choice([None, 5, 8])
        return {"expire": expire, "max_rows": most, "credit": self.random.choice([0, 2]) if most else 0}

    def note_expired(self) -> None:
        """Notes what the store holds, where that is for its options to say: servers have to hold the same."""
        if self.life:
            ids, weights = self.store.table("t").to_torch()
            self.now = self.now.changed({int(i): (w[0], w[1]) for i, w in zip(ids, weights.tolist(), strict=True)})

    def note_inside(self) -> None:
        """Notes what checkpoints inside the store hold, which have been made since."""
        for path in (self.path / "store" / "checkpoints").iterdir():
            if not path.name.startswith("."):
                self.inside.setdefault(path.name, self.now)

    def note_deltas(self) -> None:
        """Notes what a delta leads to that a trainer had published when it died."""
        for path in (self.path / "deltas").glob("delta-*"):
            self.states.setdefault(DeltaManifest.read(path).id, self.now)

    def some_ids(self) -> list[int]:
        return self.random.sample(range(IDS), self.random.randrange(1, 4))

    def train(self) -> None:
        ids = self.some_ids()
        lengths = torch.ones(len(ids), dtype=torch.int64)
        self.model.train()
        self.model(KeyedJaggedTensor(["f"], torch.tensor(ids), lengths=lengths)).sum().backward()
        self.model.zero_grad()
        rows = dict(self.now.rows)
        for i in ids:
            row = rows.get(i, (0.0, 0.0))
            rows[i] = (row[0] - 0.5 * WEIGHT[0], row[1] - 0.5 * WEIGHT[1])
        self.now = self.now.changed(rows)

    def set(self) -> None:
        rows = {i: (self.random.randrange(9) / 4, 1.0) for i in self.some_ids()}
        try:
            self.store.table("t").set(torch.tensor([*rows]), torch.tensor([*rows.values()]))
        except ValueError:  # beyond max_rows
            return
        self.now = self.now.changed({**dict(self.now.rows), **rows})

    def delete(self) -> None:
        ids = self.some_ids()
        self.store.table("t").delete(torch.tensor(ids))
        self.now = self.now.changed({i: row for i, row in self.now.rows if i not in ids})

    def edit_dense(self) -> None:
        with torch.no_grad():
            self.model.layer.bias.add_(0.25)
        self.now = Answers(self.now.rows, self.now.bias + 0.25)

    def checkpoint(self) -> None:
        self.store.checkpoint()
        self.note_inside()

    def save(self) -> None:
        self.names += 1
        path = self.path / f"saved-{self.names}"
        self.saved[self.store.checkpoint(path)] = self.now

    def restore(self) -> None:
        if self.saved:
            path = self.random.choice([*self.saved][-3:])
            self.store.restore(path)
            self.now = self.saved[path]
            with torch.no_grad():
                self.model.layer.bias.fill_(self.now.bias)

    def export(self) -> None:
        self.names += 1
        path = damo.serving.export(self.model, ARGUMENTS, self.path / f"exported-{self.names}")
        self.exported = path
        self.exports[path] = self.now
        self.note_inside()

    def publish(self) -> None:
        if self.exported is None:
            self.export()
        if self.publisher is None:
            self.publisher = damo.serving.DeltaPublisher(
                self.store, self.path / "deltas", model=self.model, args=ARGUMENTS, every_steps=1, keep=self.keep
            )
        path = self.publisher.publish()
        if path is not None:
            self.states[DeltaManifest.read(path).id] = self.now
        if self.keep is not None:
            assert len(self.publisher.deltas()) <= self.keep

    # -------------------------------------------------------------- servers

    def look(self, current: bool) -> None:
        """Has servers look for deltas: some of the old ones, and maybe a new one.

        Args:
            current: whether all has just been published, so that they have to get there.
        """
        self.begin_server()
        for server in self.servers:
            if self.random.random() < 0.3:  # it is stopped for a while
                continue
            watcher = Watcher(self.path / "deltas", 1e6, server.apply_delta, lambda server=server: server.place)
            while watcher.looks == 0:
                time.sleep(0.0005)
            watcher.stop()
            expected = self.now if current else self.published(server)
            nothing = self.publisher is None or not self.publisher.deltas()
            if current and server.path != self.exported and (nothing or watcher.following.reason is not None):
                self.lost += 1  # it has been on another line of states, of which nothing is there any more
                continue
            if expected is not None:
                np.testing.assert_allclose(server.predict(REQUEST)["output"][:, 0], expected.outputs(), atol=1e-5)
            if current:
                assert watcher.following.reason is None
                assert server.following.refused == 0

    def published(self, server: damo.serving.Predictor) -> Answers | None:
        """What it should answer where it is; None where the trainer died before it could tell."""
        if len(server.history) == 1:
            return self.exports.get(server.path)
        return self.states.get(server.history[-1])

    def begin_server(self) -> None:
        if self.exported is not None and self.random.random() < 0.5:
            (self.path / "deltas").mkdir(exist_ok=True)
            self.servers.append(damo.serving.Predictor(self.exported, memory_budget="64MiB", num_threads=1))
            if len(self.servers) > 3:
                self.servers.pop(self.random.randrange(3)).close()

    def run(self) -> None:
        """Some days."""
        try:
            for _ in range(6):
                self.session()
                if self.exported is not None:
                    self.look(current=False)
            left = [path.name for path in (self.path / "deltas").glob(".*")]
            assert all(name.endswith((".abandoned", "-staged", "-removed")) for name in left), left
        except BaseException:
            sys.stderr.write(f"keep={self.keep}: {', '.join(self.history)}\n")
            raise
        finally:
            if not self.store.closed:
                self.store.session.give_up_rows()
            for server in self.servers:
                server.close()


def dense_graph_of(path: Path) -> bytes:
    """The dense part of a model, which takes a second to make."""
    with damo.EmbeddingStore(path / "graph", memory_budget="64MiB") as store:
        exported = damo.serving.export(Model(store, 3.0), ARGUMENTS, path / "exported")
    return (exported / "dense.onnx").read_bytes()


@contextmanager
def cheap_exports(graph: bytes) -> Iterator[None]:
    """Has dense parts be made of one that was exported before."""

    def refreshed(model: nn.Module, args: object, **_: object) -> bytes:
        return refresh_dense(graph, model)

    with (
        mock.patch("damo_torchrec.serving.exporting.dense_graph", refreshed),
        mock.patch("damo_torchrec.serving.refresh.dense_graph", refreshed),
    ):
        yield


def main(seconds: float) -> None:
    begin = time.monotonic()
    seed = int(time.time())
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        graph = dense_graph_of(Path(directory))
        with cheap_exports(graph):
            while time.monotonic() < begin + seconds:
                path = Path(directory) / str(seed)
                path.mkdir()
                try:
                    Run(seed, path, graph).run()
                except BaseException:
                    sys.stderr.write(f"seed {seed}\n")
                    raise
                seed += 1
    sys.stderr.write(f"up to seed {seed}\n")


if __name__ == "__main__":
    main(float(sys.argv[1]))
