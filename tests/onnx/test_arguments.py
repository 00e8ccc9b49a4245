"""What a model's forward may be called with."""

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRMTrain

import damo_torchrec as damo
from exported_models import REQUEST
from serving_cases import SGD, Pooled, bags, feed, random_features


def test_arguments_that_cannot_be_exported(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=True)
    for args, error, message in (
        ((REQUEST, REQUEST), TypeError, "do not fit Pooled.forward"),
        (({"a": 1},), ValueError, "at least one sample"),
        (({"a": {1}},), TypeError, r"argument 'features.a' must be a KeyedJaggedTensor, .*, got set"),
        (({1: REQUEST},), ValueError, r"argument 'features' must have names as keys, got \[1\]"),
        ((random_features("abc", 0),), ValueError, "at least one sample"),
        ((REQUEST,), RuntimeError, "is weighted, but the KeyedJaggedTensor in args has no weights"),
        ((random_features("ab", 2, weighted=True),), RuntimeError, "no feature 'c'"),
    ):
        with pytest.raises(error, match=message):
            damo.onnx.export(model, args, tmp_path / "m")


class Taking(nn.Module):
    """A model that finds its tensors in what it is called with."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("abc", [8, 8, 8]), store=store, **SGD)
        self.linear = nn.Linear(5, 8)

    def score(self, dense: torch.Tensor, features: KeyedJaggedTensor) -> torch.Tensor:
        return (self.ebc(features)["a"] * self.linear(dense)).sum(1)


class OfBatch(Taking):
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.score(batch.dense_features, batch.sparse_features)


class OfDict(Taking):
    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        return self.score(batch["inner"]["dense"], batch["features"]) * batch["times"]


class Pair(NamedTuple):
    dense: torch.Tensor
    features: KeyedJaggedTensor


class OfTwo(Taking):
    def forward(self, query: Pair, item: Pair) -> torch.Tensor:
        return self.score(*query) - self.score(item.dense, item.features)


class History(nn.Module):
    """Ids of a JaggedTensor, looked up as they are, and weighed."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.embedding = damo.Embedding(4, optimizer={"name": "sgd", "gamma": 0.1}, store=store)

    def forward(self, batch: dict[str, JaggedTensor]) -> torch.Tensor:
        history = batch["history"]
        rows = self.embedding(history.values()) * history.weights().unsqueeze(1)
        return JaggedTensor(values=rows, lengths=history.lengths()).to_padded_dense(3).sum(1)


def dense(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 5, generator=torch.Generator().manual_seed(seed))


def history(batch: int) -> JaggedTensor:
    lengths = torch.arange(batch) % 4
    n = int(lengths.sum())
    return JaggedTensor(values=torch.arange(n) % 7, lengths=lengths, weights=torch.linspace(0, 1, n))


def of_batch(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = Batch(dense(batch), random_features("abc", batch, seed=batch), torch.zeros(batch))
    inputs = {"dense_features": made.dense_features, "sparse_features": made.sparse_features, "labels": made.labels}
    return (made,), inputs


def of_dict(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    features = random_features("abc", batch, seed=batch)
    made = {"inner": {"dense": dense(batch)}, "features": features, "times": 2.5, "nothing": None}
    return (made,), {"inner.dense": dense(batch), "features": features}


def of_two(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    query, item = (Pair(dense(batch, seed), random_features("abc", batch, seed=seed)) for seed in (1, 2))
    named = {
        f"{name}.{key}": value
        for name, pair in (("query", query), ("item", item))
        for key, value in pair._asdict().items()
    }
    return (query, item), named


def of_history(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    made = history(batch)
    parts = {"values": made.values(), "lengths": made.lengths(), "weights": made.weights()}
    return ({"history": made},), {f"history.{part}": value for part, value in parts.items()}


CASES = {
    "a Batch": (OfBatch, of_batch),
    "a dict": (OfDict, of_dict),
    "two NamedTuples": (OfTwo, of_two),
    "a JaggedTensor": (History, of_history),
}


def trained(kind: Any, store: damo.EmbeddingStore, make: Any) -> nn.Module:
    model: nn.Module = kind(store)
    for size in (16, 17):
        model(*make(size)[0]).sum().backward()
    return model.eval()


@pytest.mark.parametrize(("kind", "make"), CASES.values(), ids=CASES)
def test_what_holds_others_is_taken_apart_by_field(
    store: damo.EmbeddingStore, tmp_path: Path, kind: Any, make: Any
) -> None:
    model = trained(kind, store, make)
    file = damo.onnx.export(model, make(5)[0], tmp_path / "m")
    session = onnxruntime.InferenceSession(str(file))
    served = damo.serving.export(model, make(5)[0], tmp_path / "served")
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        for batch in (1, 2, 33):
            args, inputs = make(batch)
            expected = model(*args).detach().numpy()
            asked = feed(**inputs)
            (answer,) = session.run(None, {node.name: asked[node.name] for node in session.get_inputs()})
            np.testing.assert_allclose(answer, expected, atol=1e-5)
            request = {name: value for name, value in inputs.items() if name != "labels"}
            np.testing.assert_allclose(predictor.predict(request)["output"], expected, atol=1e-5)


def test_the_loss_of_torchrecs_dlrm_train(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    ebc = damo.EmbeddingBagCollection(bags("abc", [8, 8, 8]), store=store, **SGD)
    model = DLRMTrain(DLRM(ebc, 5, [8, 8], [8, 1])).eval()
    (batch,), inputs = of_batch(9)
    file = damo.onnx.export(model, batch, tmp_path / "m", output_names=["loss", "detached", "logits", "targets"])
    loss, (_, logits, labels) = model(batch)
    answers = onnxruntime.InferenceSession(str(file)).run(None, feed(**inputs))
    for answer, expected in zip(answers, (loss, loss, logits, labels), strict=True):
        np.testing.assert_allclose(answer, expected.detach().numpy(), atol=1e-5)


def test_names_of_fields_may_be_given(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    file = damo.onnx.export(
        OfDict(store), of_dict(3)[0], tmp_path / "m", input_names=["numbers", "ids"], output_names=["score"]
    )
    inputs = [node.name for node in onnxruntime.InferenceSession(str(file)).get_inputs()]
    assert inputs == ["numbers", "ids.values", "ids.lengths"]
    with pytest.raises(ValueError, match="must name 2 arguments, got"):
        damo.onnx.export(OfDict(store), of_dict(3)[0], tmp_path / "m", input_names=["numbers"])
    with pytest.raises(ValueError, match=r"names of their own, got .'ids'. twice"):
        damo.onnx.export(OfDict(store), of_dict(3)[0], tmp_path / "n", input_names=["ids", "ids"])
    with pytest.raises(ValueError, match=r"names of their own, got 'a.values' twice"):
        damo.onnx.export(OfDict(store), of_dict(3)[0], tmp_path / "n", input_names=["a.values", "a"])


def test_jagged_arguments_whose_lengths_are_wrong_are_refused(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = trained(History, store, of_history)
    session = onnxruntime.InferenceSession(str(damo.onnx.export(model, of_history(5)[0], tmp_path / "m")))
    served = damo.serving.export(model, of_history(5)[0], tmp_path / "served")
    with damo.serving.Predictor(served, memory_budget="64MiB") as predictor:
        for lengths in ([0, 1, 3], [0, 1, 1], [5, -1, -1]):
            inputs = feed(**of_history(3)[1]) | {"history.lengths": np.array(lengths)}
            with pytest.raises(Exception, match="lengths are negative, beyond max_length, or not in sum"):
                session.run(None, inputs)
            with pytest.raises(ValueError, match=r"history.lengths must (sum to the 3 ids|not be negative)"):
                predictor.predict(inputs)


@dataclass
class Refusing:
    features: KeyedJaggedTensor
    batch: InitVar[int]

    def __post_init__(self, batch: int) -> None:
        pass


@dataclass
class Converting:
    features: Any

    def __post_init__(self) -> None:
        self.features = [self.features]


@dataclass
class Scaling:
    dense: torch.Tensor

    def __post_init__(self) -> None:
        self.dense = self.dense * 2


@dataclass
class Unset:
    features: KeyedJaggedTensor
    doubled: Any = field(init=False)


@dataclass(frozen=True)
class Doubling:
    dense: torch.Tensor
    features: KeyedJaggedTensor
    doubled: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", self.dense * 2)


class OfDoubling(Taking):
    def forward(self, batch: Doubling) -> torch.Tensor:
        return self.score(batch.doubled, batch.features)


def test_what_a_dataclass_computes_is_computed_in_the_graph(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = OfDoubling(store)
    file = damo.onnx.export(model, Doubling(dense(3), random_features("abc", 3)), tmp_path / "m")
    features = random_features("abc", 8)
    (answer,) = onnxruntime.InferenceSession(str(file)).run(None, feed(dense=dense(8, 5), features=features))
    expected = model.eval()(Doubling(dense(8, 5), features)).detach().numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Refusing(REQUEST, 3), "a Refusing that dataclasses.replace cannot make again of its fields: InitVar"),
        (lambda: Converting(REQUEST), "argument 'features' is a Converting .* it changes .'features'."),
        (lambda: Scaling(torch.ones(2)), "argument 'features' is a Scaling .* it changes .'dense'."),
        (lambda: Unset(REQUEST), "argument 'features' is a Unset .* no attribute 'doubled'"),
    ],
)
def test_dataclasses_that_cannot_be_made_again_are_refused(
    store: damo.EmbeddingStore, tmp_path: Path, made: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        damo.onnx.export(Pooled(store, weighted=False), made(), tmp_path / "m")
