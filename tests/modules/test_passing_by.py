"""Calls that look for weights among parameters, or for TorchRec's classes: they reach rows, or say that they do not."""

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec.inference.modules import quantize_embeddings, quantize_inference_model
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.quant.embedding_modules import EmbeddingBagCollection as Quantized

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import kjt

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quant.* deprecated"),
]


@pytest.fixture
def model(memory_store):
    return nn.ModuleDict({"sparse": nn.Sequential(collection(memory_store, "t")), "dense": nn.Linear(4, 1)})


@pytest.mark.parametrize("apply", [apply_optimizer_in_backward, _apply_optimizer_in_backward])
@pytest.mark.parametrize("part", ["sparse", ""])
def test_an_optimizer_in_backward_is_refused_with_the_call_that_gives_it_to_rows(model, apply, part):
    parameters = model.get_submodule(part).parameters()
    with pytest.raises(ValueError, match=r"optimizer_type=torch\.optim\.\S*Adam, optimizer_kwargs=\{'lr': 0\.5\}"):
        apply(torch.optim.Adam, parameters, {"lr": 0.5})


def test_an_optimizer_in_the_backward_of_the_dense_part_is_torchs_affair(model):
    apply_optimizer_in_backward(torch.optim.SGD, list(model["dense"].parameters()), {"lr": 0.5})
    before = model["dense"].weight.detach().clone()
    model["dense"](look_up(model["sparse"][0], {"t": [[1]]})).sum().backward()
    assert not torch.equal(model["dense"].weight, before)


def quantized_by_hand(model):
    model["sparse"][0].qconfig = quantization.QConfig(
        activation=quantization.PlaceholderObserver, weight=quantization.PlaceholderObserver
    )
    return Quantized.from_float(model["sparse"][0])


QUANTIZATIONS = {
    "quantize_embeddings": lambda model: quantize_embeddings(model, dtype=torch.qint8, inplace=True),
    "quantize_inference_model": quantize_inference_model,
    "prepare": lambda model: quantization.propagate_qconfig_(model, {"sparse": quantization.default_qconfig}),
    "from_float": quantized_by_hand,
}


@pytest.mark.parametrize("quantize", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
def test_quantization_of_embeddings_is_refused_with_what_quantizes_rows(model, quantize):
    with pytest.raises(ValueError, match=r"are not quantized: .*onnx\.export and serving\.export .*dtype='int8'"):
        quantize(model)
    assert type(model["sparse"][0]) is damo.EmbeddingBagCollection


def test_the_dense_part_alone_is_quantized(model):
    update(model["sparse"][0], {"t": [[1]]})
    before = look_up(model["sparse"][0], {"t": [[1]]})
    quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    assert type(model["dense"]) is not nn.Linear
    assert torch.equal(look_up(model["sparse"][0], {"t": [[1]]}), before)
    with pytest.raises(TypeError, match="cannot be copied"):  # which it begins with, unless it is done in place
        quantization.quantize_dynamic(model, {nn.Linear})


def test_a_frozen_model_freezes_its_rows_and_thaws_them(model, memory_store):
    ebc = model["sparse"][0]
    update(ebc, {"t": [[1]]})
    before = rows_of(memory_store)
    assert model.requires_grad_(False) is model
    assert not ebc(kjt({"t": [[1], [2]]})).values().requires_grad
    model["dense"].requires_grad_(True)
    model["dense"](look_up(ebc, {"t": [[1]]})).sum().backward()
    assert rows_of(memory_store) == before
    model.requires_grad_()
    update(ebc, {"t": [[1]]})
    assert rows_of(memory_store) != before


def test_who_only_looks_at_parameters_changes_nothing(model):
    names = [name for name, _ in model.named_parameters()]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert names == ["dense.weight", "dense.bias"]
    update(model["sparse"][0], {"t": [[1]]})
    assert len(model["sparse"][0].tables()[0]) == 1
