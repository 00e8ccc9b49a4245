"""The one place where gradients become updates.

A forward looks rows up and pools them; autograd calls its backward with the gradient of the output, and that call is
the update: there is no parameter and no ``optimizer.step()`` for rows. docs/design.md, "Semantics of a row", says what
holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from damo_torchrec import _core
from damo_torchrec.errors import StoreClosedError
from damo_torchrec.modules.accumulation import Accumulation, Part
from damo_torchrec.modules.tracing import eager
from damo_torchrec.store.session import Session


@dataclass(frozen=True)
class Call:
    """What one forward of a collection needs beyond its tensors.

    Args:
        session: of the store where the rows are.
        accumulation: gradients of the collection that wait for this one.
        features: which outputs to pool, for the session's engine.
        shape: of the output: (batch, columns), or (floats,) where keys differ in their number of bags.
        update: whether a gradient updates rows.
        set_optimizers: brings the collection's learning rates to the engine; called before each update.
        pinned: whether the output goes to another device.
    """

    session: Session
    accumulation: Accumulation
    features: Sequence[_core.Feature]
    shape: tuple[int, ...]
    update: bool
    set_optimizers: Callable[[], None]
    pinned: bool = False


@dataclass(frozen=True)
class Batch:
    """Jagged tensors as the engine reads them: contiguous, on the CPU.

    Args:
        keys: features.
        ids: int64 ``(n,)``, by feature, then bag.
        lengths: int64, one for each bag, by feature.
        weights: float32 ``(n,)``, or None.
        size: bags of each feature.
        bags: int64 ``(keys,)``: bags of each feature, if they differ; `size` does not count then.
    """

    keys: tuple[str, ...]
    ids: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    size: int
    bags: torch.Tensor | None = None


# The engine is no graph: what surrounds it is compiled.
@eager
def lookup(call: Call, batch: Batch) -> torch.Tensor:
    """Looks up and pools a batch: float32 of the call's shape.

    Raises:
        ValueError: the lengths are negative or do not sum to n.
        DamoError: rows cannot be read.
    """
    # Rows are no tensor that could require a gradient: this stands for them.
    rows = torch.empty(0, device="cpu", requires_grad=call.update and torch.is_grad_enabled())
    output: torch.Tensor = _Lookup.apply(  # type: ignore[no-untyped-call]  # torch's
        rows, batch.ids, batch.lengths, batch.weights, batch, call
    )
    return output


def make_lookup(batch: Batch, features: Sequence[_core.Feature]) -> _core.Lookup:
    """The engine's view of a batch; it points into the batch's tensors. Errors are `lookup`'s."""
    return _core.Lookup(
        features=features,
        ids=batch.ids.data_ptr(),
        num_ids=batch.ids.numel(),
        lengths=batch.lengths.data_ptr(),
        keys=len(batch.keys),
        batch=batch.size,
        bags=batch.bags.data_ptr() if batch.bags is not None else 0,
        weights=batch.weights.data_ptr() if batch.weights is not None else 0,
    )


# Below this the allocator of torch serves as well.
_SMALL_OUTPUT = 1 << 18


def _output(call: Call) -> torch.Tensor:
    """Memory for the output, from the engine's pool where it is large."""
    n = math.prod(call.shape)
    if call.pinned or n < _SMALL_OUTPUT:
        return torch.empty(call.shape, dtype=torch.float32, device="cpu", pin_memory=call.pinned)
    buffer = _core.OutputBuffer(call.session.engine, n)
    storage = torch.frombuffer(buffer, dtype=torch.float32).untyped_storage()
    # Not a view: those that are made without a graph cannot be changed in place.
    return torch.empty(0, dtype=torch.float32, device="cpu").set_(storage, 0, call.shape, (*call.shape[1:], 1))


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        ids: torch.Tensor,
        lengths: torch.Tensor,
        weights: torch.Tensor | None,
        batch: Batch,
        call: Call,
    ) -> torch.Tensor:
        generation = call.session.generation
        lookup = make_lookup(batch, call.features)
        output = _output(call)
        call.session.engine.forward(lookup, output.data_ptr(), call.shape[-1])
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
        check_same_rows(call, ctx.generation)
        grad = readable(grad)
        weight_grad = None
        if tensors[2] is not None and ctx.needs_input_grad[3]:
            weight_grad = weight_gradient(call, ctx.lookup, grad)
        if call.update:
            update(call, Part(ctx.lookup, ctx.generation, ctx.kept, grad))
        return None, None, None, weight_grad, None, None


def readable(grad: torch.Tensor) -> torch.Tensor:
    """A gradient as the engine reads it: float32 on the CPU, each sample's values side by side."""
    grad = grad.to("cpu", torch.float32)
    if grad.stride(-1) != 1 or (grad.dim() == 2 and grad.shape[0] > 1 and grad.stride(0) < grad.shape[1]):
        return grad.contiguous()
    return grad


def weight_gradient(call: Call, lookup: _core.Lookup, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of a batch's weights, float32 ``(n,)``."""
    result = torch.empty(lookup.num_ids, dtype=torch.float32, device="cpu")
    call.session.engine.weight_gradient(lookup, grad.data_ptr(), grad.stride(0), result.data_ptr())
    return result


def check_same_rows(call: Call, generation: int) -> None:
    """Raises StoreClosedError if the store's rows are others than at that generation."""
    _ = call.session.engine
    if generation != call.session.generation:
        raise StoreClosedError(f"the store {call.session.path} was restored between this forward and its backward")


def update(call: Call, part: Part) -> None:
    """Updates rows with this gradient, or keeps it until `EmbeddingStore.accumulate`'s number of calls is there."""
    session = call.session
    with session.mutex:
        check_same_rows(call, part.generation)
        parts = call.accumulation.take(part, session.waiting.calls_per_update)
        if not parts:
            return
        call.set_optimizers()
        session.note_change()
        applied = session.engine.backward(
            [(p.lookup, p.grad.data_ptr(), p.grad.stride(0)) for p in parts],
            grad_scale=session.grad_scale,
            skip_nonfinite=session.options.on_nonfinite == "skip",
        )
        if not applied:
            session.skipped_backwards += 1
