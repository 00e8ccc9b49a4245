"""The operators that stand for lookups where a model is traced: torch.compile, torch.export, torch.fx.

``damo_torchrec::embedding_bag_collection`` is one node of a graph, with a fake kernel and a backward that updates rows;
``damo_torchrec::embedding_collection`` is that for sequences, whose sizes torch.fx alone can trace. In eager mode the
collections do not go through them: the backward would have to find all rows again.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple, Protocol, cast

import torch

_library: Any = torch.library.Library("damo_torchrec", "DEF")  # type: ignore[no-untyped-call]  # torch's
_ARGUMENTS = (
    "Tensor ids, Tensor lengths, Tensor? weights, str[] keys, SymInt batch, SymInt[] sizes, int collection, bool update"
)
_library.define(f"embedding_bag_collection(Tensor rows, {_ARGUMENTS}) -> Tensor")
_library.define(f"embedding_bag_collection_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)")
_library.define(
    "embedding_collection(Tensor ids, SymInt[] ids_per_key, str[] keys, int collection, bool update) -> Tensor[]"
)


class GraphBatch(NamedTuple):
    """A batch as a graph hands it over, in the order of the operator's arguments.

    Args:
        ids: of all features.
        lengths: of all bags.
        weights: one for each id, or None.
        keys: features.
        batch: bags of each feature.
        sizes: the same by feature, where only running the graph can tell whether they differ.
        collection: its number.
        update: whether the gradient updates rows.
    """

    ids: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    keys: list[str]
    batch: int
    sizes: list[int]
    collection: int
    update: bool


class PooledCollection(Protocol):
    """What ``embedding_bag_collection`` stands for."""

    @property
    def device(self) -> torch.device:
        """Of the output."""

    @property
    def output_width(self) -> int:
        """Of the output."""

    def graph_forward(self, batch: GraphBatch) -> torch.Tensor:
        """The output: float32 ``(batch, output_width)``."""

    def graph_backward(self, grad: torch.Tensor, batch: GraphBatch) -> torch.Tensor:
        """Updates rows with the output's gradient; returns that of the weights, without elements if there are none."""


class SequenceCollection(Protocol):
    """What ``embedding_collection`` stands for."""

    def graph_sequences(
        self, ids: torch.Tensor, ids_per_key: list[int], keys: list[str], update: bool
    ) -> list[torch.Tensor]:
        """Each output's float32 ``(n, dim)``, for autograd."""


# References without callbacks: an interrupt that comes while one runs is lost.
_collections: dict[int, weakref.ref[PooledCollection | SequenceCollection]] = {}
_numbers = itertools.count(1)


def embedding_bag_collection(*args: Any) -> torch.Tensor:
    """Calls the operator, or has it traced."""
    output: torch.Tensor = torch.ops.damo_torchrec.embedding_bag_collection(*args)
    return output


def embedding_collection(*args: Any) -> list[torch.Tensor]:
    """Calls the operator for sequences, or has it traced."""
    outputs: list[torch.Tensor] = torch.ops.damo_torchrec.embedding_collection(*args)
    return outputs


def register(collection: PooledCollection | SequenceCollection) -> int:
    """A number by which graphs name a collection, in this process and for as long as it lives."""
    for gone in [number for number, reference in list(_collections.items()) if reference() is None]:
        _collections.pop(gone, None)
    number = next(_numbers)
    _collections[number] = weakref.ref(collection)
    return number


def _pooled(number: int) -> PooledCollection:
    return cast("PooledCollection", _collection(number))


def _collection(number: int) -> PooledCollection | SequenceCollection:
    reference = _collections.get(number)
    collection = reference() if reference is not None else None
    if collection is None:
        raise RuntimeError(
            f"a graph refers to collection number {number}, which is not in this process or is gone: "
            "trace the model again"
        )
    return collection


def _forward(rows: torch.Tensor, *arguments: Any) -> torch.Tensor:
    batch = GraphBatch(*arguments)
    if any(size != batch.batch for size in batch.sizes):
        raise ValueError(f"batches with a size for each feature cannot be traced by torch.fx, got sizes {batch.sizes}")
    return _pooled(batch.collection).graph_forward(batch)


def _backward(grad: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = GraphBatch(*arguments)
    return torch.empty(0, device="cpu"), _pooled(batch.collection).graph_backward(grad, batch)


def _forward_sequences(
    ids: torch.Tensor, ids_per_key: list[int], keys: list[str], collection: int, update: bool
) -> list[torch.Tensor]:
    # Through the collection's own autograd: what it looks up stays valid for its backward.
    sequences = cast("SequenceCollection", _collection(collection))
    return sequences.graph_sequences(ids, ids_per_key, keys, update)


_library.impl("embedding_collection", _forward_sequences, "CompositeImplicitAutograd")
for _key in ("CPU", "CUDA"):
    _library.impl("embedding_bag_collection", _forward, _key)
    _library.impl("embedding_bag_collection_backward", _backward, _key)


def _fake_forward(rows: torch.Tensor, *arguments: Any) -> torch.Tensor:
    batch = GraphBatch(*arguments)
    collection = _pooled(batch.collection)
    return torch.empty(batch.batch, collection.output_width, dtype=torch.float32, device=collection.device)


def _fake_backward(grad: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    batch = GraphBatch(*arguments)
    n = 0 if batch.weights is None else batch.weights.shape[0]
    device = batch.ids.device if batch.weights is None else batch.weights.device
    return torch.empty(0, device="cpu"), torch.empty(n, dtype=torch.float32, device=device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, ids, lengths, weights, *rest = inputs
    ctx.save_for_backward(ids, lengths, weights)
    ctx.rest = rest


def _autograd(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    ids, lengths, weights = ctx.saved_tensors
    rows_grad, weight_grad = torch.ops.damo_torchrec.embedding_bag_collection_backward(
        grad, ids, lengths, weights, *ctx.rest
    )
    return rows_grad, None, None, weight_grad if weights is not None else None, *[None] * len(ctx.rest)


torch.library.register_fake("damo_torchrec::embedding_bag_collection", _fake_forward, lib=_library)
torch.library.register_fake("damo_torchrec::embedding_bag_collection_backward", _fake_backward, lib=_library)
torch.library.register_autograd(
    "damo_torchrec::embedding_bag_collection", _autograd, setup_context=_setup_context, lib=_library
)
