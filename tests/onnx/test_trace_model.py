"""A model is traced as it is, and left as it is."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingConfig, KeyedJaggedTensor

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


@pytest.mark.parametrize("compiled", [False, True])
def test_the_model_inside_of_what_is_put_around_it_is_exported(
    store: damo.EmbeddingStore, tmp_path: Path, compiled: bool
) -> None:
    model = TwoTowers(store)
    around = torch.compile(model, backend="eager") if compiled else Parallel(model)
    args = (random_features("u", 2), random_features("i", 2))
    graphs = [onnx.load(damo.onnx.export(one, args, tmp_path / type(one).__name__)).graph for one in (model, around)]
    for values in ("input", "output", "initializer"):
        plain, inside = ([value.name for value in getattr(graph, values)] for graph in graphs)
        assert inside == plain


class Parallel(DistributedDataParallel):
    """One without a process group."""

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = model


class Unasked(nn.Module):
    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("a", [4]), store=store, **SGD)

    def forward(self, dense: torch.Tensor) -> torch.Tensor:
        return dense * 2


class LongestBag(nn.Module):
    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        config = EmbeddingConfig(name="longest", embedding_dim=8, num_embeddings=50, feature_names=["a"])
        self.ec = damo.EmbeddingCollection([config], store=store, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ec(features)["a"].to_padded_dense()


@pytest.mark.parametrize("dense_only", [False, True])
def test_what_no_graph_can_do_is_said_in_one_sentence(
    store: damo.EmbeddingStore, tmp_path: Path, dense_only: bool
) -> None:
    with pytest.raises(ValueError, match=r"^the model's forward looks nothing up: torch\.onnx\.export"):
        damo.onnx.export(Unasked(store), torch.ones(2, 3), tmp_path / "m", dense_only=dense_only)
    # With TorchRec 1.4 torch's own tracing ends there already, and says so in its words.
    told = r"(?s)dense part of LongestBag: .*(give to_padded_dense a length$|torchrec\S+ in to_padded_dense\))"
    with pytest.raises(RuntimeError, match=told):
        damo.onnx.export(LongestBag(store), random_features("a", 2), tmp_path / "m", dense_only=dense_only)
