"""What is no plain tensor is refused with a sentence, or read as torch reads it, wherever tensors reach the engine."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec import EmbeddingConfig, KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.serving.arrays import as_array
from damo_torchrec.tensors import address, plain
from support import config, small_store

Tensor = torch.Tensor
SGD: Any = (torch.optim.SGD, {"lr": 1.0})
IDS = torch.tensor([1, 2, 3])
ONES = torch.ones(3, dtype=torch.int64)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


class Wrapper(torch.Tensor):
    """Its values are in another tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, strides=inner.stride())

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called")


class Tagged(torch.Tensor):
    """Its values are its own, but its functions are not."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.detach, Tensor.contiguous, Tensor.resolve_neg, Tensor.resolve_conj, Tensor.cpu):
            raise AssertionError(f"{function} was called")
        return super().__torch_function__(function, types, args, kwargs or {})


def fake(tensor: Tensor) -> Tensor:
    with FakeTensorMode() as mode:
        return mode.from_tensor(tensor)


def emptied(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


NOT_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "fake": fake,
    "wrapper": Wrapper,
    "meta": lambda t: t.to("meta"),
    "emptied": emptied,
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([t], layout=torch.jagged),
}
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "tagged": lambda t: t.clone().as_subclass(Tagged),
    "parameter": lambda t: torch.nn.Parameter(t.clone(), requires_grad=False),
    "expanded": lambda t: t[:1].expand(t.shape),
    "apart": lambda t: torch.stack([t, t], dim=1)[:, 0],
}


class Places:
    """Where tensors come in, each as a call."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        self.store = store
        self.weighted = damo.EmbeddingBagCollection([config("w", 3, ["f"])], *SGD, is_weighted=True, store=store)
        self.sequences = damo.EmbeddingCollection([EmbeddingConfig(
            name="s", embedding_dim=3, num_embeddings=10, feature_names=["f"])], *SGD, store=store)  # fmt: skip
        self.embedding = damo.Embedding(3, store=store)
        self.table = store.table("w")

    def pooled(self, ids: Tensor = IDS, lengths: Tensor = ONES, weights: Tensor = WEIGHTS) -> Tensor:
        return self.weighted(KeyedJaggedTensor(["f"], ids, weights, lengths=lengths)).values()

    def calls(self) -> dict[str, tuple[Tensor, Callable[[Tensor], Any]]]:
        return {
            "values": (IDS, lambda t: self.pooled(ids=t)),
            "lengths": (ONES, lambda t: self.pooled(lengths=t)),
            "weights": (WEIGHTS, lambda t: self.pooled(weights=t)),
            "prefetch": (IDS, lambda t: self.weighted.prefetch(KeyedJaggedTensor(["f"], t, WEIGHTS, lengths=ONES))),
            "sequences": (IDS, lambda t: self.sequences(KeyedJaggedTensor(["f"], t, lengths=ONES))["f"].values()),
            "their lengths": (ONES, lambda t: self.sequences(KeyedJaggedTensor(["f"], IDS, lengths=t))["f"].values()),
            "embedding": (IDS, lambda t: self.embedding(t)),
            "get": (IDS, lambda t: self.table.get(t)),
            "contains": (IDS, lambda t: self.table.contains(t)),
            "set": (IDS, lambda t: self.table.set(t, torch.ones(3, 3))),
            "set weights": (WEIGHTS.expand(3, 3), lambda t: self.table.set(IDS, t)),
            "delete": (IDS, lambda t: self.table.delete(t)),
            "as_array": (IDS, lambda t: torch.from_numpy(as_array("x", t, np.int64))),
        }


@pytest.fixture
def places() -> Any:
    with small_store() as store:
        yield Places(store)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_tensors_without_values_of_their_own_are_refused(places: Places, kind: str) -> None:
    for place, (tensor, call) in places.calls().items():
        if kind == "sparse" and place == "their lengths":
            continue  # TorchRec's own computation of what a sample has
        with pytest.raises((TypeError, ValueError), match=r"dense tensor|must have|must be on the cpu"):
            call(NOT_PLAIN[kind](tensor))
    assert len(places.table) == 0


@pytest.mark.parametrize("kind", PLAIN)
def test_tensors_are_read_as_torch_reads_them(places: Places, kind: str) -> None:
    """The oracle is the same call with a copy that torch made."""
    places.table.set(IDS, torch.arange(9.0).view(3, 3))
    for place, (tensor, call) in places.calls().items():
        odd = PLAIN[kind](tensor)
        copy = torch.zeros(tensor.shape, dtype=tensor.dtype) + odd.as_subclass(Tensor)
        if "lengths" in place and kind == "zeros without memory":
            continue  # they do not sum to the number of ids
        expected, found = call(copy), call(odd)
        if isinstance(expected, Tensor):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_weights_of_a_state_dict_without_values_are_refused(places: Places, kind: str) -> None:
    weight = NOT_PLAIN[kind](torch.ones(9).view(3, 3) if kind != "nested" else torch.ones(3))
    with pytest.raises(RuntimeError, match=r"w\.weight must (be a dense tensor|have)"):
        places.weighted.load_state_dict({"embedding_bags.w.weight": weight})
    with pytest.raises(ValueError, match="_extra_state is none of a collection's"):
        places.weighted.set_extra_state(NOT_PLAIN[kind](places.weighted.get_extra_state()))
    assert len(places.table) == 0


def negative(tensor: Tensor) -> Tensor:
    """`tensor`, with torch's negative bit: its memory has the other sign."""
    found = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert found.is_neg()
    return found


def test_the_negative_bit_counts(places: Places) -> None:
    weights = torch.arange(9.0).view(3, 3)
    places.table.set(IDS, negative(weights))
    assert places.table.get(IDS).tolist() == weights.tolist()
    torch.testing.assert_close(places.pooled(weights=negative(WEIGHTS)), places.pooled())
    output = places.pooled()
    before = places.table.get(IDS)
    output.backward(negative(torch.ones_like(output)))
    torch.testing.assert_close(places.table.get(IDS), before - WEIGHTS[:, None])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's fake tensors
def test_forwards_under_a_fake_mode_and_in_function_transforms_are_refused(places: Places) -> None:
    for _, call in list(places.calls().values())[:-1]:
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(TypeError, match="FakeTensorMode"):
            call(IDS)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(TypeError, match="FakeTensorMode"):
        places.table.get([1, 2])
    with pytest.raises(TypeError, match=r"in the middle of torch\.func"):
        torch.func.vmap(places.embedding)(torch.arange(4).view(2, 2))
    with pytest.raises(TypeError, match=r"in the middle of torch\.func"):
        torch.func.grad(lambda weights: places.pooled(weights=weights).sum())(WEIGHTS)
    output = places.pooled()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(TypeError, match="FakeTensorMode"):
        output.sum().backward()
    assert places.table.iter == 0


def test_what_a_backward_reads_again_is_its_own(places: Places) -> None:
    """Ids and weights in memory that torch does not know to be shared, which is written to or taken away."""
    places.table.set(range(10), torch.zeros(10, 3))
    ids, weights = np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0], dtype=np.float32)
    tensors = torch.from_numpy(ids), torch.from_numpy(weights)
    lengths = ONES.clone()
    output = places.pooled(tensors[0], lengths, tensors[1])
    ids[:], weights[:] = 7, 100
    lengths.numpy()[:] = 2**40
    output.sum().backward()
    kept = torch.tensor([4, 5, 6])
    output = places.pooled(kept, lengths=ONES.clone())
    kept.untyped_storage().resize_(0)
    output.sum().backward()
    expected = -torch.tensor([0.0, 1, 2, 3, 1, 2, 3, 0, 0, 0])[:, None].expand(10, 3)
    torch.testing.assert_close(places.table.get(range(10)), expected)


@pytest.mark.parametrize("before_the_node", [True, False])
def test_a_gradient_whose_memory_is_taken_away_is_refused(places: Places, before_the_node: bool) -> None:
    grad = torch.ones(3, 3)

    def take_away(_: Tensor) -> None:
        grad.untyped_storage().resize_(0)

    # Autograd begins with what was computed last.
    first = torch.ones(1, requires_grad=True) * 1
    output = places.pooled()
    last = torch.ones(1, requires_grad=True) * 1
    (last if before_the_node else first).register_hook(take_away)
    with pytest.raises(ValueError, match="must have its values in memory"):
        torch.autograd.backward([first, output, last], [torch.ones(1), grad, torch.ones(1)])
    assert places.table.iter == 0


def test_addresses_are_those_of_plain_tensors() -> None:
    tensor = torch.arange(6).view(2, 3)
    assert plain("x", tensor) is tensor
    assert address(tensor[1]) == tensor.data_ptr() + 24
    for odd in (Wrapper(tensor), fake(tensor), negative(torch.ones(2))):
        with pytest.raises(TypeError, match="a tensor for the engine must"):
            address(odd)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.ma.masked_array([1, 2, 3], mask=[0, 1, 0]), "masked array"),
        (np.array([(1,)], dtype=[("a", "i8")]), "must be integers"),
        (np.array(["1"]), "must be integers"),
        (np.array([1], dtype="m8[s]"), "must be integers"),
        (np.array([1j]), "must be integers"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(array: Any, error: str) -> None:
    with pytest.raises(TypeError, match=error):
        as_array("x", array, np.int64)


def test_arrays_are_read_whatever_their_memory_is_like() -> None:
    numbers = np.arange(6).reshape(2, 3)
    read_only = numbers.copy()
    read_only.flags.writeable = False
    misaligned = np.frombuffer(b"\0" + numbers.tobytes(), dtype=np.uint8)[1:].view(np.int64).reshape(2, 3)
    odd = [
        numbers.astype(">i8"),
        np.asfortranarray(numbers),
        read_only,
        misaligned,
        numbers.view(np.matrix),
    ]
    for array in [*odd, numbers.astype(object)]:
        found = as_array("x", array, np.int64)
        assert found.tolist() == numbers.tolist()
        assert type(found) is np.ndarray
        assert found.flags.c_contiguous
        assert found.flags.aligned
        assert found.dtype.isnative
