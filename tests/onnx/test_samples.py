"""Which models answer each sample by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from exported_models import GIVEN, Given
from serving_cases import Groups, Pooled, Sequences, SharedTower, TwoTowers, random_features


def by_sample(model: nn.Module, arguments: Any, path: Path) -> Any:
    damo.onnx.export(model, arguments, path, dense_only=True)
    return damo.onnx.model_card(path)["by_sample"]


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (lambda e, d: e.softmax(0), False),
        (lambda e, d: e.softmax(1), True),
        (lambda e, d: e - e.mean(0), False),
        (lambda e, d: (e, d / d.norm(dim=0)), False),
        (lambda e, d: e @ d.T, False),
        (lambda e, d: e.sum(1).argsort(), False),
        (lambda e, d: e.sum(), False),
        (lambda e, d: e.cumsum(0), False),
        (lambda e, d: e - e.amax(0), False),
        (lambda e, d: (e * d).sum(1).sigmoid(), True),
        (lambda e, d: {"top": (e * d).topk(2, dim=1).indices, "all": d.clone()}, True),
    ],
)
@pytest.mark.parametrize("samples", [1, 6])
def test_models_that_compare_samples(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any, expected: bool, samples: int
) -> None:
    arguments = (GIVEN[0][:samples], random_features("a", samples, seed=1))
    assert by_sample(Given(store, outputs), arguments, tmp_path / "m") is expected


def test_models_of_all_kinds_of_lookups(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    for model, arguments in (
        (Pooled(store, weighted=True), random_features("abc", 2, weighted=True)),
        (TwoTowers(store), (random_features("u", 2), random_features("i", 2))),
        (SharedTower(store), (random_features("xy", 2), random_features("xy", 2))),
        (Groups(store), torch.arange(6).view(2, 3)),
        (Sequences(store), random_features("cd", 3)),
    ):
        assert by_sample(model, arguments, tmp_path / type(model).__name__) is True


class OfValidIds(nn.Module):
    """Rows of a plain module beside ours: other ids than there are are errors."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ours = Groups(store)
        self.plain = nn.Embedding(4, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.ours(ids) + self.plain(ids[:, 0])


def test_models_that_take_certain_ids_alone_are_asked_with_those(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    assert by_sample(OfValidIds(store), torch.arange(6).view(2, 3) % 4, tmp_path / "m") is True


def test_it_is_not_known_without_a_trial(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    damo.onnx.export(Given(store, lambda e, d: e), GIVEN, tmp_path / "m", verify=False)
    assert damo.onnx.model_card(tmp_path / "m")["by_sample"] is None
