"""Exported models beside the models themselves: whether a graph answers as its model does in eval mode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.models.dlrm import DLRM

import damo_torchrec as damo
from serving_cases import SGD, bags, feed, random_features, train

BATCHES = (0, 1, 2, 33, 300)
Requests = Callable[[int], dict[str, Any]]
REQUEST = random_features("abc", 16)


def worst_error(model: nn.Module, requests: Requests, session: onnxruntime.InferenceSession, batches: Any) -> float:
    errors = [0.0]
    for batch in batches:
        request = requests(batch)
        with torch.no_grad():
            expected = model(*request.values())
        expected = list(expected.values()) if isinstance(expected, dict) else [expected]
        answers = session.run(None, feed(**request))
        for wanted, got in zip(expected, answers, strict=True):
            assert got.shape == tuple(wanted.shape)
            assert got.dtype == np.float32
            scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
            errors.append(float(np.abs(got - wanted.numpy()).max(initial=0)) / scale)
    return max(errors)


def check_parity(
    model: nn.Module, requests: Requests, path: Path, tolerance: float = 1e-5, batches: Any = BATCHES, **options: Any
) -> None:
    train(model, *(tuple(requests(16).values()) for _ in range(3)))
    damo.onnx.export(model, tuple(requests(1).values()), path, **options)
    for threads in (1, 8):
        session = damo.onnx.session(path, num_threads=threads, operators=False)
        assert worst_error(model, requests, session, batches) < tolerance


def dlrm_requests(keys: str = "abc") -> Requests:
    def requests(batch: int) -> dict[str, Any]:
        dense = torch.from_numpy(np.random.default_rng(batch).standard_normal((batch, 5), dtype=np.float32))
        return {"dense_features": dense, "sparse_features": random_features(keys, batch, seed=batch)}

    return requests


def dlrm(store: damo.EmbeddingStore, kind: type[nn.Module] = DLRM, **options: Any) -> nn.Module:
    ebc = damo.EmbeddingBagCollection(bags("abc", [8] * 3), store=store, **SGD)
    return kind(ebc, 5, [8, 8], [8, 1], **options)


class Rearranged(nn.Module):
    """Keys that are permuted and split before they are looked up, and columns regrouped afterwards."""

    def __init__(self, store: damo.EmbeddingStore, weighted: bool) -> None:
        super().__init__()
        options = {"is_weighted": weighted, "store": store, **SGD}
        self.first = damo.EmbeddingBagCollection(bags("abc", [8, 4, 8], "first"), **options)
        self.second = damo.EmbeddingBagCollection(bags("de", [4, 8], "second"), **options)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        first, second = features.permute([4, 0, 2, 1, 3]).split([3, 2])
        pooled = [self.first(first), self.second(second)]
        return dict(zip("xyz", KeyedTensor.regroup(pooled, [["e", "a"], ["c"], ["d", "b"]]), strict=True))


def files_in(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def answer(path: Path, features: KeyedJaggedTensor = REQUEST) -> np.ndarray:
    return damo.onnx.session(path, operators=False).run(None, feed(features=features))[0]


class Given(nn.Module):
    """A model whose outputs are what a function makes of pooled rows and a plain tensor."""

    def __init__(self, store: damo.EmbeddingStore, outputs: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("a", [4]), store=store, **SGD)
        self.bias = nn.Parameter(torch.arange(4.0))
        self.outputs = outputs

    def forward(self, dense: torch.Tensor, features: KeyedJaggedTensor) -> Any:
        return self.outputs(self.ebc(features).values() + self.bias, dense)


# What `Given` is exported with.
GIVEN = (torch.linspace(-1, 1, 24).reshape(6, 4), random_features("a", 6, seed=3))
