"""The one place where gradients become updates.

A forward looks rows up and pools them; autograd calls its backward with the gradient of the output, and that call is
the update: there is no parameter and no ``optimizer.step()`` for rows. docs/design.md, "Semantics of a row", says what
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from damo_torchrec import _core
from damo_torchrec.errors import StoreClosedError
from damo_torchrec.store import EmbeddingStore


@dataclass(frozen=True)
class Call:
    """What one forward of a collection needs beyond its tensors.

    Args:
        store: where the rows are.
        collection: identifies the collection, for `EmbeddingStore.accumulate`.
        features: which outputs to pool, for the store's engine.
        keys: features in the batch.
        batch: bags of each feature.
        columns: width of the output.
        update: whether a gradient updates rows.
        set_optimizers: brings the collection's learning rates to the engine; called before each update.
    """

    store: EmbeddingStore
    collection: int
    features: Sequence[_core.Feature]
    keys: int
    batch: int
    columns: int
    update: bool
    set_optimizers: Callable[[], None]


# The engine is no graph: what surrounds it is compiled.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def pooled_lookup(call: Call, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Looks up and pools a batch: float32 ``(batch, columns)``.

    Args:
        call: the rest of the arguments.
        ids: int64 ``(n,)``, by feature, then bag.
        lengths: int64 ``(keys * batch,)``.
        weights: float32 ``(n,)`` or None.

    Raises:
        ValueError: the lengths are negative or do not sum to n.
        DamoError: rows cannot be read.
    """
    # Rows are no tensor that could require a gradient: this stands for them.
    rows = torch.empty(0, device="cpu", requires_grad=call.update and torch.is_grad_enabled())
    output: torch.Tensor = _PooledLookup.apply(rows, ids, lengths, weights, call)  # type: ignore[no-untyped-call]
    return output


def make_lookup(
    call: Call, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
) -> _core.Lookup:
    """The engine's view of a batch; it points into the tensors. Arguments and errors are `pooled_lookup`'s."""
    return _core.Lookup(
        features=call.features,
        ids=ids.data_ptr(),
        num_ids=ids.numel(),
        lengths=lengths.data_ptr(),
        keys=call.keys,
        batch=call.batch,
        weights=weights.data_ptr() if weights is not None else 0,
    )


# Below this the allocator of torch serves as well.
_SMALL_OUTPUT = 1 << 18


def _output(call: Call) -> torch.Tensor:
    """Memory for the output, from the store's pool where it is large."""
    n = call.batch * call.columns
    if n < _SMALL_OUTPUT:
        return torch.empty(call.batch, call.columns, dtype=torch.float32, device="cpu")
    buffer = _core.OutputBuffer(call.store._engine, n)
    storage = torch.frombuffer(buffer, dtype=torch.float32).untyped_storage()
    # Not a view: those that are made without a graph cannot be changed in place.
    return torch.empty(0, dtype=torch.float32, device="cpu").set_(
        storage, 0, (call.batch, call.columns), (call.columns, 1)
    )


class _PooledLookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        weights: torch.Tensor | None,
        call: Call,
    ) -> torch.Tensor:
        generation = call.store._generation
        lookup = make_lookup(call, ids, lengths, weights)
        output = _output(call)
        call.store._engine.forward(lookup, output.data_ptr(), call.columns)
        # The engine's lookup points into these: they are kept, whatever hooks do with saved tensors. Saving them has
        # autograd notice if they are changed in place.
        ctx.kept = (ids, lengths, weights.detach() if weights is not None else None)
        ctx.save_for_backward(ids, lengths, weights)
        ctx.call, ctx.lookup, ctx.generation = call, lookup, generation
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        _check_same_rows(ctx)
        grad = grad.to(torch.float32)
        if grad.stride(-1) != 1 or (grad.shape[0] > 1 and grad.stride(0) < grad.shape[1]):
            grad = grad.contiguous()
        weight_grad = None
        if tensors[2] is not None and ctx.needs_input_grad[3]:
            weight_grad = torch.empty_like(tensors[2])
            call.store._engine.weight_gradient(ctx.lookup, grad.data_ptr(), grad.stride(0), weight_grad.data_ptr())
        if call.update:
            _apply(call, _Part(ctx, tensors, grad))
        return None, None, None, weight_grad, None


def _check_same_rows(ctx: Any) -> None:
    store: EmbeddingStore = ctx.call.store
    _ = store._engine
    if ctx.generation != store._generation:
        raise StoreClosedError(f"the store {store.path} was restored between this forward and its backward")


@dataclass(frozen=True)
class _Part:
    """One backward call's gradient, and all that its lookup points into."""

    ctx: Any
    tensors: tuple[torch.Tensor | None, ...]
    grad: torch.Tensor


def _apply(call: Call, part: _Part) -> None:
    """Updates rows with this gradient, or keeps it until `EmbeddingStore.accumulate`'s number of calls is there."""
    store = call.store
    with store._mutex:
        _check_same_rows(part.ctx)
        waiting = store._pending.get(call.collection, [])
        parts = [*waiting, part]
        if len(parts) < store._accumulate:
            # Autograd may go on to use the gradient's memory.
            kept = _Part(part.ctx, part.tensors, part.grad.clone())
            store._pending[call.collection] = [*waiting, kept]
            return
        # Gone with a gradient that raises, too: half of an accumulation cannot be made whole.
        store._pending.pop(call.collection, None)
        call.set_optimizers()
        store._note_change()
        applied = store._engine.backward(
            [(p.ctx.lookup, p.grad.data_ptr(), p.grad.stride(0)) for p in parts],
            grad_scale=store.grad_scale,
            skip_nonfinite=store._options.on_nonfinite == "skip",
        )
        if not applied:
            store._skipped_backwards += 1
