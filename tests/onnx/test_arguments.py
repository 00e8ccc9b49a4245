"""What a model's forward may be called with."""

from pathlib import Path

import pytest

import damo_torchrec as damo
from exported_models import REQUEST
from serving_cases import Pooled, random_features


def test_arguments_that_cannot_be_exported(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=True)
    for args, error, message in (
        ((REQUEST, REQUEST), TypeError, "do not fit Pooled.forward"),
        (({"a": 1},), TypeError, "must be a KeyedJaggedTensor, a tensor or a constant, got dict"),
        ((random_features("abc", 0),), ValueError, "at least one sample"),
        ((REQUEST,), RuntimeError, "is weighted, but the KeyedJaggedTensor in args has no weights"),
        ((random_features("ab", 2, weighted=True),), RuntimeError, "no feature 'c'"),
    ):
        with pytest.raises(error, match=message):
            damo.onnx.export(model, args, tmp_path / "m")
