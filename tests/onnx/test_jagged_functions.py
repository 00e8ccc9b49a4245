"""A graph refuses lengths and weights that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from exported_models import REQUEST, answer
from serving_cases import Pooled, feed, random_features

ONE_EACH = np.ones((3, 1), dtype=np.int64)
WRONG_LENGTHS = "lengths are negative, beyond max_length, or not in sum the number of values"
WRONG_INPUT = "Got invalid dimensions|Unexpected input"
BAD_REQUESTS = {
    "too few ids": ({"values": np.arange(2), "lengths": ONE_EACH}, WRONG_LENGTHS),
    "too many ids": ({"values": np.arange(4), "lengths": ONE_EACH}, WRONG_LENGTHS),
    "a negative length": ({"values": np.arange(3), "lengths": np.array([[5], [-1], [-1]])}, WRONG_LENGTHS),
    "a negative length at the end": ({"values": np.arange(3), "lengths": np.array([[4], [0], [-1]])}, WRONG_LENGTHS),
    "more ids than memory": ({"values": np.arange(3), "lengths": np.array([[1 << 45], [1], [1]])}, WRONG_LENGTHS),
    "lengths whose sum wraps": (
        {"values": np.arange(3), "lengths": np.array([[2**62, 2**62], [2**62, 2**62], [3, 0]])},
        WRONG_LENGTHS,
    ),
    "too few keys": ({"values": np.arange(2), "lengths": np.ones((2, 1), dtype=np.int64)}, WRONG_INPUT),
    "too many keys": ({"values": np.arange(4), "lengths": np.ones((4, 1), dtype=np.int64)}, WRONG_INPUT),
    "no int64": ({"values": np.arange(3, dtype=np.int32), "lengths": ONE_EACH}, WRONG_INPUT),
}


def test_wrong_requests_are_refused(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    session = damo.onnx.session(tmp_path / "m", operators=False)
    for bad, message in BAD_REQUESTS.values():
        with pytest.raises(Exception, match=message):
            session.run(None, {f"features.{name}": value for name, value in bad.items()})


@pytest.mark.parametrize("keys", ["abc", "axbc"], ids=["all keys", "some keys"])
def test_more_or_fewer_weights_than_ids_are_refused(store: damo.EmbeddingStore, tmp_path: Path, keys: str) -> None:
    model = Pooled(store, weighted=True).eval()
    damo.onnx.export(model, random_features(keys, 1, weighted=True), tmp_path / "m")
    session = damo.onnx.session(tmp_path / "m", operators=False)
    request = feed(features=random_features(keys, 5, weighted=True))
    session.run(None, request)
    weights = request["features.weights"]
    for wrong in (weights[1:], np.append(weights, weights[:1])):
        with pytest.raises(Exception, match="there is not one weight for each value"):
            session.run(None, request | {"features.weights": wrong})


def test_bags_beyond_the_declared_length_are_refused(model: nn.Module, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m", max_length=4)
    answer(tmp_path / "m", random_features("abc", 8, longest=4))
    long = KeyedJaggedTensor(keys=list("abc"), values=torch.arange(5), lengths=torch.tensor([5, 0, 0]))
    with pytest.raises(Exception, match=WRONG_LENGTHS):
        answer(tmp_path / "m", long)
