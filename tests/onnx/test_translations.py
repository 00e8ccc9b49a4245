"""What TorchRec's modules do with jagged tensors and columns, around collections."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.regroup import KTRegroupAsDict

import damo_torchrec as damo
from exported_models import BATCHES, Rearranged, check_parity
from serving_cases import SGD, bags, random_features


@pytest.mark.parametrize("weighted", [False, True])
def test_jagged_tensors_that_are_rearranged(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"features": random_features("aebdc", batch, weighted=weighted, seed=batch)}

    check_parity(Rearranged(store, weighted), requests, tmp_path / "m", batches=BATCHES[1:])


class Regrouped(nn.Module):
    """Columns that TorchRec's module regroups, of bags that it weighs by position."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.weigh = PositionWeightedModuleCollection({"a": 8, "b": 8, "c": 8})
        self.first = damo.EmbeddingBagCollection(bags("abc", [8, 4, 8], "first"), is_weighted=True, store=store, **SGD)
        self.second = damo.EmbeddingBagCollection(bags("de", [4, 8], "second"), store=store, **SGD)
        self.regroup = KTRegroupAsDict([["e", "a"], ["c"], ["d", "b"]], ["x", "y", "z"])

    def forward(self, features: KeyedJaggedTensor, others: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
        return self.regroup([self.first(self.weigh(features)), self.second(others)])


def test_torchrecs_modules_around_a_collection(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    def requests(batch: int) -> dict[str, Any]:
        return {"features": random_features("abc", batch, seed=batch), "others": random_features("de", batch, seed=1)}

    model = Regrouped(store)
    for weight in model.weigh.parameters():
        nn.init.uniform_(weight)
    check_parity(model, requests, tmp_path / "m", batches=BATCHES[1:])
