"""A training that a predictor follows, and whether the predictor's answers are those of its model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo
from damo_torchrec.serving.refresh import refresh_dense
from damo_torchrec.store.delta_writer import Additions, write_delta
from serving_cases import SGD, random_features, train

IDS = 60
PATIENCE = 60  # seconds, for what takes none of them
Answer = dict[str, np.ndarray]


class Everything(nn.Module):
    """Sums and sequences, where unseen ids read the mean row; means of unseen initial values and plain rows.

    And a layer whose weights change with them.
    """

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        mean = damo.TableOptions(unseen_in_eval="mean")
        options = {"means": damo.TableOptions(unseen_in_eval="initial"), "sums": mean}
        bags = [
            EmbeddingBagConfig(name="sums", embedding_dim=4, num_embeddings=9, feature_names=["a", "b"]),
            EmbeddingBagConfig(
                name="means", embedding_dim=3, num_embeddings=9, feature_names=["b"], pooling=PoolingType.MEAN
            ),
        ]
        rows = [EmbeddingConfig(name="sequence", embedding_dim=4, num_embeddings=9, feature_names=["a"])]
        self.bags = damo.EmbeddingBagCollection(bags, is_weighted=True, store=store, table_options=options, **SGD)
        self.rows = damo.EmbeddingCollection(rows, store=store, table_options={"sequence": mean}, **SGD)
        self.plain = damo.Embedding(4, store=store, optimizer={"name": "sgd", "gamma": 0.1}, padding_idx=0)
        self.layer = nn.Linear(8, 2)

    def forward(self, features: KeyedJaggedTensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        plain = self.plain(ids)
        pooled = self.bags(features).values()
        return {
            "pooled": pooled,
            "sequence": self.rows(features)["a"].values(),
            "plain": plain,
            "scores": self.layer(plain.flatten(1)),
        }


def request_of(batch: int, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng((batch, seed)).integers(-IDS, IDS, (batch, 2))
    features = random_features("ab", batch, ids=IDS, weighted=True, seed=1000 * seed + batch)
    return {"features": features, "ids": torch.from_numpy(ids)}


REQUESTS = [request_of(batch, seed=1) for batch in (1, 2, 7, 40)]


@dataclass
class Training:
    """A model on its way, the checkpoint to serve it from, and what came since."""

    store: damo.EmbeddingStore
    model: Everything
    path: Path
    newest: Path
    steps: int = 0

    def answers(self) -> list[Answer]:
        """What the model answers, by torch."""
        self.model.eval()
        with torch.no_grad():
            return [{k: v.numpy() for k, v in self.model(*request.values()).items()} for request in REQUESTS]

    def step(self) -> None:
        """Updates rows, deletes some, and changes the layer."""
        self.steps += 1
        train(self.model, tuple(request_of(10, seed=self.steps).values()))
        for table in self.store.tables().values():
            table.delete(torch.arange(-IDS, IDS)[self.steps % 7 :: 7])
        with torch.no_grad():
            for parameter in self.model.layer.parameters():
                parameter.add_(0.5)

    def delta(self, dense: bool = True, path: Path | None = None) -> Path:
        files = {}
        if dense:
            files["dense.onnx"] = refresh_dense((self.path / "served" / "dense.onnx").read_bytes(), self.model)
        target = path or self.path / f"delta-{self.store.step:012}"
        with self.store.session.mutex:
            self.newest = write_delta(self.store.session, target, self.newest, Additions(files))
        return self.newest


def answers_of(predictor: damo.serving.Predictor) -> list[Answer]:
    return [predictor.predict(request) for request in REQUESTS]


def same(one: Answer, other: Answer) -> bool:
    """Rows to the bit; what is computed from them up to rounding."""
    exact = all(np.array_equal(one[name], other[name]) for name in ("pooled", "sequence", "plain"))
    return exact and np.allclose(one["scores"], other["scores"], atol=1e-5)


def check_same(got: list[Answer], expected: list[Answer]) -> None:
    assert all(same(one, other) for one, other in zip(got, expected, strict=True))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
