"""A model is traced as it is, and left as it is."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection

import damo_torchrec as damo
from exported_models import REQUEST
from serving_cases import SGD, TwoTowers, bags, random_features, train


def test_the_model_is_left_as_it_is(model: nn.Module, tmp_path: Path) -> None:
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    train(model, (REQUEST,))


def test_inputs_and_outputs_have_names_and_free_sizes(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    request = (random_features("u", 2), random_features("i", 2))
    damo.onnx.export(TwoTowers(store), request, tmp_path / "m", output_names=["score"])
    session = damo.onnx.session(tmp_path / "m", operators=False)
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "query.values": ["query.ids"],
        "query.lengths": [1, "batch"],
        "item.values": ["item.ids"],
        "item.lengths": [1, "batch"],
    }
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("score", ["batch"])]


def test_models_that_cannot_be_exported(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    plain = EmbeddingBagCollection(tables=bags("a", [4]))
    with pytest.raises(ValueError, match="found none"):
        damo.onnx.export(plain, random_features("a", 1), tmp_path / "m")
    meta = damo.EmbeddingBagCollection(bags("a", [4]), device="meta", **SGD)
    with pytest.raises(ValueError, match="meta"):
        damo.onnx.export(meta, random_features("a", 1), tmp_path / "m", store=store)
