"""What the code on each page of the documentation takes for granted: by page, a context that gives its names.

``then`` among them are functions of the names, called before the second block of code, the third, and so on.
"""

import contextlib
import logging
import os
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import faiss
import numpy as np
import onnxruntime
import pyarrow
import torch
import torchrec
from pyarrow import parquet
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo

Names = Mapping[str, Any]
_USERS = EmbeddingBagConfig(name="t_user", embedding_dim=8, num_embeddings=1000, feature_names=["user"])
_ITEMS = EmbeddingBagConfig(name="t_item", embedding_dim=8, num_embeddings=1000, feature_names=["item"])


class Ranker(nn.Module):
    """Two tables beside dense features."""

    def __init__(
        self,
        store: damo.EmbeddingStore,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        features: tuple[str, str] = ("user", "item"),
        weighted: bool = False,
    ) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(name=f"t_{name}", embedding_dim=8, num_embeddings=1000, feature_names=[name])
            for name in features
        ]
        self.sparse = damo.EmbeddingBagCollection(tables, optimizer, {"lr": 0.05}, store=store, is_weighted=weighted)
        self.over = nn.Linear(16 + 2, 1)

    def forward(self, dense_features: torch.Tensor, sparse_features: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(torch.cat([dense_features, self.sparse(sparse_features).values()], 1)).squeeze(1)


def batch() -> tuple[torch.Tensor, KeyedJaggedTensor]:
    features = KeyedJaggedTensor(["user", "item"], torch.tensor([7, 8, 405, 1]), lengths=torch.ones(4).long())
    return torch.rand(2, 2), features


def train(model: nn.Module, *publishers: damo.serving.DeltaPublisher) -> None:
    model(*batch()).sum().backward()
    for publisher in publishers:
        publisher.step()


@contextlib.contextmanager
def _trained(path: str | None = None) -> Iterator[Names]:
    """A model that was trained for a step, and a batch of it by every name that pages have for it."""
    with damo.EmbeddingStore(path, memory_budget="64MiB") as store:
        model = Ranker(store)
        train(model)
        dense, features = batch()
        yield {
            "args": (dense, features),
            "batches": [batch()] * 3,
            "build": Ranker,
            "damo": damo,
            "dense": dense.numpy(),
            "dense_features": dense,
            "features": features,
            "ids": features.values().numpy(),
            "lengths": features.lengths().view(2, 2).numpy(),
            "model": model,
            "np": np,
            "onnxruntime": onnxruntime,
            "sparse_features": features,
            "store": store,
            "train": train,
        }


def _keep(names: dict[str, Any]) -> None:
    """The names as they are."""


@contextlib.contextmanager
def nothing() -> Iterator[Names]:
    yield {}


@contextlib.contextmanager
def readme() -> Iterator[Names]:
    with _trained() as names:
        yield names


@contextlib.contextmanager
def clients() -> Iterator[Names]:
    with _trained() as names:
        damo.onnx.export(names["model"], names["args"], "ranker/")
        yield names


@contextlib.contextmanager
def serving() -> Iterator[Names]:
    with _trained() as names:
        store = damo.EmbeddingStore("store", memory_budget="64MiB")
        train(Ranker(store))
        store.close()
        damo.serving.export(names["model"], names["args"], "served")
        with damo.serving.Predictor("served", memory_budget="64MiB") as predictor:
            yield {**names, "then": [_keep, lambda names: names.update(predictor=predictor)]}


@contextlib.contextmanager
def reliability() -> Iterator[Names]:
    devices = EmbeddingBagConfig(name="t_device", embedding_dim=8, num_embeddings=1000, feature_names=["device"])
    with _trained("embeddings") as names:
        store, model = names["store"], names["model"]
        damo.EmbeddingBagCollection([devices], torch.optim.SGD, {"lr": 0.1}, store=store)
        damo.serving.export(model, names["args"], "serving/")
        damo.onnx.export(model, names["args"], "exported/")
        Path("exported/model.onnx").rename("model.onnx")
        Path("backup").mkdir()
        store.checkpoint("backup/checkpoints")
        damo.serving.DeltaPublisher(store, "deltas/", model=model, args=names["args"], every_steps=1).publish()
        try:
            yield {**names, "logging": logging}
        finally:
            logging.getLogger("damo_torchrec").setLevel(logging.NOTSET)


class DeepFM(nn.Module):
    """As Damo-Embedding's own example has it, but for its layers."""

    def __init__(self, dim: int, fields: int) -> None:
        super().__init__()
        optimizer = {"name": "adam", "gamma": 0.001}
        self.embedding = damo.Embedding(dim, optimizer=optimizer)
        self.over = nn.Linear(dim * fields, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.over(self.embedding(ids).flatten(1))


@contextlib.contextmanager
def damo_embedding() -> Iterator[Names]:
    def one_step(model: nn.Module) -> None:
        model(torch.randint(1, 1000, (4, 39))).sum().backward()

    try:
        yield {
            "DeepFM": DeepFM,
            "damo_embedding_init": damo.damo_embedding_init,
            "save_model": damo.save_model,
            "torch": torch,
            "train": one_step,
        }
    finally:
        damo.default_store().close()


@contextlib.contextmanager
def distributed() -> Iterator[Names]:
    """A group of this process alone."""
    of_torchrun = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    Path("data").mkdir()
    names = {"DistributedModelParallel": DistributedModelParallel, "Ranker": Ranker, "damo": damo, "torch": torch}
    try:
        with patch.dict(os.environ, {**of_torchrun, "MASTER_PORT": "0"}):
            yield names
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def distributed_checkpoints() -> Iterator[Names]:
    def save_and_close(names: dict[str, Any]) -> None:
        damo.distributed.save_model(
            DistributedModelParallel(Ranker(names["store"]), sharders=damo.distributed.sharders())
        )
        names["store"].close()
        torch.distributed.destroy_process_group()

    def begin_anew(names: dict[str, Any]) -> None:
        names["store"].close()
        torch.distributed.init_process_group("gloo")
        store = damo.distributed.open_store("data/again", memory_budget="64MiB")
        model = DistributedModelParallel(Ranker(store), sharders=damo.distributed.sharders())
        train(model)
        names.update(store=store, model=model, served=Ranker(store))

    with distributed() as names:
        more = {"args": batch(), "batches": [batch()], "optimizer": None, "sample": batch(), "steps": 3}
        yield {**names, **more, "then": [_keep, save_and_close, begin_anew]}


@contextlib.contextmanager
def tables() -> Iterator[Names]:
    with damo.EmbeddingStore("embeddings/", memory_budget="64MiB") as store:
        model = Ranker(store)
        train(model)
        optimizer = torch.optim.Adam(model.parameters())
        damo.save_model(model, "embeddings/checkpoints/step_4000", optimizer=optimizer)

    def close_and_move(names: dict[str, Any]) -> None:
        """For the next block's store to be another one."""
        names["store"].close()
        Path("embeddings").rename("converted")

    def with_a_checkpoint(names: dict[str, Any]) -> None:
        names["ebc"](batch()[1]).values().sum().backward()
        names["store"].checkpoint("embeddings/checkpoints/step_4000")
        names["index"] = types.SimpleNamespace(remove=lambda ids: None)

    def with_users(names: dict[str, Any]) -> None:
        names["store"].close()
        names["store"] = damo.EmbeddingStore("converted", memory_budget="64MiB")
        Ranker(names["store"], torch.optim.AdamW)

    yield {
        "batch_time": 1e9,
        "faiss": faiss,
        "queries": np.zeros((2, 8), np.float32),
        "damo": damo,
        "make_model": lambda store: Ranker(store, torch.optim.AdamW),
        "optimizer": optimizer,
        "tables": [_USERS, _ITEMS],
        "then": [close_and_move, with_a_checkpoint, with_users],
        "torch": torch,
        "torchrec": torchrec,
    }


@contextlib.contextmanager
def data() -> Iterator[Names]:
    clicks = {
        "user_id": ["anna", "bo", None],
        "basket": [[1, 2], [], [3]],
        "counts": [[1.0, 2.0], [], [1.0]],
        "price": [9.5, 1.0, 3.0],
        "age": [31, None, 50],
        "clicked": [1, 0, 1],
    }
    Path("clicks/2024-05-01").mkdir(parents=True)
    Path("checkpoints").mkdir()
    parquet.write_table(pyarrow.table(clicks), "clicks/2024-05-01/part-0.parquet")
    with damo.EmbeddingStore(memory_budget="64MiB") as store:
        model = Ranker(store, features=("user", "basket"), weighted=True)
        optimizer = torch.optim.Adam(model.parameters())
        yield {"damo": damo, "model": model, "optimizer": optimizer}


@contextlib.contextmanager
def strings() -> Iterator[Names]:
    with damo.EmbeddingStore(memory_budget="64MiB") as store:
        yield {"damo": damo, "store": store, "tables": [_USERS]}


@contextlib.contextmanager
def metrics() -> Iterator[Names]:
    log = types.SimpleNamespace(log=lambda figures, step: None, log_metrics=lambda figures, step: None)
    with damo.EmbeddingStore(memory_budget="64MiB") as store:
        yield {
            "batches": range(3),
            "damo": damo,
            "logging": logging,
            "store": store,
            "trainer": types.SimpleNamespace(logger=log),
            "wandb": log,
        }


PAGES: Mapping[str, Callable[[], contextlib.AbstractContextManager[Names]]] = {
    "README.md": readme,
    "docs/clients.md": clients,
    "docs/damo_embedding.md": damo_embedding,
    "docs/data.md": data,
    "docs/distributed.md": distributed,
    "docs/distributed_checkpoints.md": distributed_checkpoints,
    "docs/five_minutes.md": nothing,
    "docs/metrics.md": metrics,
    "docs/reliability.md": reliability,
    "docs/serving.md": serving,
    "docs/strings.md": strings,
    "docs/tables.md": tables,
    "docs/tour.md": nothing,
}
