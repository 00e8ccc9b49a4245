"""The operator that stands for a pooled lookup where a model is traced: torch.compile, torch.export, torch.fx.

``damo_torchrec::embedding_bag_collection`` is one node of a graph, with a fake kernel and a backward that updates rows.
In eager mode the collections do not go through it: the backward would have to find all rows again.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from damo_torchrec.modules.embedding_bag_collection import EmbeddingBagCollection

_library: Any = torch.library.Library("damo_torchrec", "DEF")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor ids, Tensor lengths, Tensor? weights, str[] keys, SymInt batch, int collection, bool update"
_library.define(f"embedding_bag_collection(Tensor rows, {_ARGUMENTS}) -> Tensor")
_library.define(f"embedding_bag_collection_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)")

_collections: weakref.WeakValueDictionary[int, EmbeddingBagCollection] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def is_traced(features: object) -> bool:
    """Whether a forward that is given these features is being traced."""
    return torch.compiler.is_compiling() or isinstance(features, torch.fx.Proxy)


def embedding_bag_collection(*args: Any) -> torch.Tensor:
    """Calls the operator, or has it traced."""
    output: torch.Tensor = torch.ops.damo_torchrec.embedding_bag_collection(*args)
    return output


def register(collection: EmbeddingBagCollection) -> int:
    """A number by which graphs name a collection, in this process and for as long as it lives."""
    number = next(_numbers)
    _collections[number] = collection
    return number


def _collection(number: int) -> EmbeddingBagCollection:
    try:
        return _collections[number]
    except KeyError:
        raise RuntimeError(
            f"a graph refers to EmbeddingBagCollection number {number}, which is not in this process or is gone: "
            "trace the model again"
        ) from None


def _forward(
    rows: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor | None,
    keys: list[str],
    batch: int,
    collection: int,
    update: bool,
) -> torch.Tensor:
    return _collection(collection)._graph_forward(ids, lengths, weights, keys, batch, update)


def _backward(
    grad: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor | None,
    keys: list[str],
    batch: int,
    collection: int,
    update: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    weight_grad = _collection(collection)._graph_backward(grad, ids, lengths, weights, keys, batch, update)
    return torch.empty(0, device="cpu"), weight_grad


for _key in ("CPU", "CUDA"):
    _library.impl("embedding_bag_collection", _forward, _key)
    _library.impl("embedding_bag_collection_backward", _backward, _key)


def _fake_forward(
    rows: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor | None,
    keys: list[str],
    batch: int,
    collection: int,
    update: bool,
) -> torch.Tensor:
    return ids.new_empty(batch, _collection(collection)._columns(), dtype=torch.float32)


def _fake_backward(
    grad: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    weights: torch.Tensor | None,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(0, device="cpu"), ids.new_empty(ids.shape if weights is not None else 0, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, ids, lengths, weights, *rest = inputs
    ctx.save_for_backward(ids, lengths, weights)
    ctx.rest = rest


def _autograd(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    ids, lengths, weights = ctx.saved_tensors
    rows_grad, weight_grad = torch.ops.damo_torchrec.embedding_bag_collection_backward(
        grad, ids, lengths, weights, *ctx.rest
    )
    return rows_grad, None, None, weight_grad if weights is not None else None, None, None, None, None


torch.library.register_fake("damo_torchrec::embedding_bag_collection", _fake_forward, lib=_library)
torch.library.register_fake("damo_torchrec::embedding_bag_collection_backward", _fake_backward, lib=_library)
torch.library.register_autograd(
    "damo_torchrec::embedding_bag_collection", _autograd, setup_context=_setup_context, lib=_library
)
