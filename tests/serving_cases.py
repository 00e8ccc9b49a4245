"""Models to serve, and requests for them: as KeyedJaggedTensors, and as what a session is fed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo

SGD: dict[str, Any] = {"optimizer_type": torch.optim.SGD, "optimizer_kwargs": {"lr": 0.1}}


def random_features(
    keys: Sequence[str], batch: int, longest: int = 4, ids: int = 60, weighted: bool = False, seed: int = 0
) -> KeyedJaggedTensor:
    """Bags of every length up to `longest`, of ids in ±`ids`: some empty, many with duplicates."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, len(keys) * batch)
    n = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=list(keys),
        values=torch.from_numpy(rng.integers(-ids, ids, n)),
        lengths=torch.from_numpy(lengths),
        weights=torch.from_numpy(rng.random(n, dtype=np.float32)) if weighted else None,
        stride=batch,
    )


def feed(**arguments: Any) -> dict[str, np.ndarray]:
    """The arguments of a model's forward as a session's inputs."""
    inputs = {}
    for name, value in arguments.items():
        if isinstance(value, KeyedJaggedTensor):
            inputs[f"{name}.values"] = value.values().numpy().astype(np.int64)
            inputs[f"{name}.lengths"] = value.lengths().view(len(value.keys()), -1).numpy().astype(np.int64)
            if value.weights_or_none() is not None:
                inputs[f"{name}.weights"] = value.weights().numpy()
        else:
            inputs[name] = value.numpy()
    return inputs


def train(model: nn.Module, *batches: tuple[Any, ...]) -> None:
    """Gives rows to ids."""
    model.train()
    for batch in batches:
        output = model(*batch)
        (sum(o.sum() for o in output.values()) if isinstance(output, dict) else output.sum()).backward()
    model.eval()


def bags(
    names: str, dims: Sequence[int], prefix: str = "t", pooling: PoolingType = PoolingType.SUM
) -> list[EmbeddingBagConfig]:
    return [
        EmbeddingBagConfig(
            name=f"{prefix}_{name}", embedding_dim=dim, num_embeddings=50, feature_names=[name], pooling=pooling
        )
        for name, dim in zip(names, dims, strict=True)
    ]


class Pooled(nn.Module):
    """Tables of two dims; a feature of two tables, keys in another order, one that is of no table, and means."""

    def __init__(self, store: damo.EmbeddingStore, weighted: bool) -> None:
        super().__init__()
        tables = [
            EmbeddingBagConfig(
                name=f"first{weighted}",
                embedding_dim=8,
                num_embeddings=50,
                feature_names=["c", "a"],
                pooling=PoolingType.MEAN,
            ),
            EmbeddingBagConfig(name=f"second{weighted}", embedding_dim=3, num_embeddings=50, feature_names=["b"]),
            EmbeddingBagConfig(name=f"third{weighted}", embedding_dim=8, num_embeddings=50, feature_names=["a"]),
        ]
        self.ebc = damo.EmbeddingBagCollection(tables, is_weighted=weighted, store=store, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ebc(features).values()


class Sequences(nn.Module):
    """Rows of each id, and sequences padded to one length."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        config = EmbeddingConfig(name="sequence", embedding_dim=8, num_embeddings=50, feature_names=["c", "d"])
        self.ec = damo.EmbeddingCollection([config], store=store, **SGD)
        self.linear = nn.Linear(8, 1)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        rows = self.ec(features)
        return {"scores": self.linear(rows["c"].values()), "padded": rows["d"].to_padded_dense(3).sum(1)}


class SomeSequences(nn.Module):
    """Looks up more than it uses."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        config = EmbeddingConfig(name="some", embedding_dim=8, num_embeddings=50, feature_names=["c", "d", "a"])
        self.ec = damo.EmbeddingCollection([config], store=store, **SGD)
        self.ebc = damo.EmbeddingBagCollection(bags("ad", [8, 8], "none"), store=store, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        rows = self.ec(features)
        self.ebc(features)
        return rows["d"].to_padded_dense(3).sum(1)


class SharedTower(nn.Module):
    """Collections that are called twice."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("xy", [8, 4], "shared"), store=store, **SGD)
        config = EmbeddingConfig(name="shared", embedding_dim=8, num_embeddings=50, feature_names=["x"])
        self.ec = damo.EmbeddingCollection([config], store=store, **SGD)

    def forward(self, query: KeyedJaggedTensor, item: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        pooled = self.ebc(query).values() * self.ebc(item).values()
        sequences = (self.ec(features)["x"].to_padded_dense(2).sum(1) for features in (query, item))
        return {"pooled": pooled, "sequences": torch.cat([*sequences], dim=1)}


class TwoTowers(nn.Module):
    """Two collections, each with its own argument."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.query = damo.EmbeddingBagCollection(bags("u", [8], "query"), store=store, **SGD)
        self.item = damo.EmbeddingBagCollection(bags("i", [8], "item"), store=store, **SGD)
        self.query_layer, self.item_layer = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, query: KeyedJaggedTensor, item: KeyedJaggedTensor) -> torch.Tensor:
        left = self.query_layer(self.query(query)["u"])
        return (left * self.item_layer(self.item(item)["i"])).sum(1)


class Groups(nn.Module):
    """Damo-Embedding's module in a model."""

    def __init__(self, store: damo.EmbeddingStore, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embedding = damo.Embedding(
            8, group=3, optimizer={"name": "sgd", "gamma": 0.1}, store=store, padding_idx=padding_idx
        )
        self.linear = nn.Linear(24, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(ids).flatten(1))
