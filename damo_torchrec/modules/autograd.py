"""The one place where gradients become updates.

A forward looks rows up and pools them; autograd calls its backward with the gradient of the output, and the end of that
pass is the update: there is no parameter and no ``optimizer.step()`` for rows. docs/design.md, "Semantics of a row",
says what holds.
"""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from damo_torchrec import _core
from damo_torchrec.modules.fused_optimizer import FusedTableOptimizer
from damo_torchrec.modules.tracing import eager
from damo_torchrec.store.autograd_task import current_task, will_execute
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session
from damo_torchrec.store.updates import add, check_same_rows, pass_under_way
from damo_torchrec.store.waiting import Gradient
from damo_torchrec.tensors import address, plain_rows


@dataclass(frozen=True)
class Call:
    """What one forward of a collection needs beyond its tensors.

    Args:
        session: of the store where the rows are.
        tables: that are looked up and trained.
        optimizer: what they are trained with.
        features: which outputs to pool, for the session's engine.
        shape: of the output: (batch, columns), or (floats,) where keys differ in their number of bags.
        update: whether a gradient updates rows.
        trained: by output, whether it updates that one's; None for all.
        sizes: by output, its floats, where keys differ in their number of bags.
        pinned: whether the output goes to another device.
    """

    session: Session
    tables: Sequence[OpenTable]
    optimizer: FusedTableOptimizer
    features: Sequence[_core.Feature]
    shape: tuple[int, ...]
    update: bool
    trained: Sequence[bool] | None = None
    sizes: Sequence[int] | None = None
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
        divisor: of the gradients that rows get.
    """

    keys: tuple[str, ...]
    ids: torch.Tensor
    lengths: torch.Tensor
    weights: torch.Tensor | None
    size: int
    bags: torch.Tensor | None = None
    divisor: int = 1


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


def own_copy(batch: Batch) -> Batch:
    """A batch that nobody else has: a backward reads it again, whatever becomes of the caller's."""
    weights = batch.weights.detach().clone() if batch.weights is not None else None
    return replace(batch, ids=batch.ids.clone(), lengths=batch.lengths.clone(), weights=weights)


def make_lookup(batch: Batch, features: Sequence[_core.Feature]) -> _core.Lookup:
    """The engine's view of a batch; it points into the batch's tensors. Errors are `lookup`'s."""
    return _core.Lookup(
        features=features,
        ids=address(batch.ids),
        num_ids=batch.ids.numel(),
        lengths=address(batch.lengths),
        keys=len(batch.keys),
        batch=batch.size,
        bags=address(batch.bags) if batch.bags is not None else 0,
        weights=address(batch.weights) if batch.weights is not None else 0,
    )


# Of forwards, for the order in which gradients are summed.
_forwards = itertools.count(1)

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
        read = own_copy(batch) if any(ctx.needs_input_grad) else batch
        lookup = make_lookup(read, call.features)
        output = _output(call)
        call.session.engine.forward(lookup, address(output), call.shape[-1])
        # The engine's lookup points into what it read, which is kept, whatever hooks do with saved tensors. Saving what
        # was given has autograd refuse what torch's own modules refuse: to change it in place.
        ctx.kept = (ids, lengths, weights.detach() if weights is not None else None, read.ids, read.weights)
        ctx.save_for_backward(ids, lengths, weights)
        ctx.call, ctx.lookup, ctx.generation, ctx.order = call, lookup, generation, next(_forwards)
        ctx.batch = read
        # A forward in the middle of a backward pass recomputes what a checkpoint has dropped, for that pass.
        recomputed_for = pass_under_way(call.session) if call.update and rows.requires_grad else None
        ctx.recomputed_for = weakref.ref(recomputed_for) if recomputed_for is not None else None
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        call: Call = ctx.call
        tensors = ctx.saved_tensors
        check_same_rows(call.session, ctx.generation)
        grad = readable(grad)
        weight_grad = None
        if tensors[2] is not None and ctx.needs_input_grad[3]:
            weight_grad = weight_gradient(call, ctx.lookup, grad)
        if call.update and reaches_rows(ctx.next_functions[0][0]):
            trained, grad = what_trains(call, ctx.batch, ctx.lookup, grad)
            gradient = Gradient(trained, ctx.generation, ctx.order, ctx.kept, grad, call.tables, call.optimizer)
            add(call.session, gradient, ctx.recomputed_for() if ctx.recomputed_for is not None else None)
        return None, None, None, weight_grad, None, None


def reaches_rows(node: Any) -> bool:
    """Whether the pass that calls this reaches the node that stands for rows: one for some tensors only does not."""
    if current_task() is None or will_execute(node):
        return True
    warnings.warn(
        "torch.autograd.grad and backward(inputs=...) give gradients of their inputs alone: they update no rows",
        stacklevel=2,
    )
    return False


def readable(grad: torch.Tensor) -> torch.Tensor:
    """A gradient as the engine reads it: float32 on the CPU, each sample's values side by side."""
    return plain_rows("the gradient of a lookup", grad).to(torch.float32)


def what_trains(call: Call, batch: Batch, found: _core.Lookup, grad: torch.Tensor) -> tuple[_core.Lookup, torch.Tensor]:
    """What of a lookup and its gradient updates rows: all, unless tables are not trained."""
    if batch.divisor != 1:
        grad = grad / batch.divisor
    if call.trained is None:
        return found, grad
    features = list(itertools.compress(call.features, call.trained))
    if call.sizes is not None:  # one output behind the other
        grad = torch.cat(list(itertools.compress(torch.split(grad, list(call.sizes)), call.trained)))
    return make_lookup(batch, features), grad


def weight_gradient(call: Call, lookup: _core.Lookup, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of a batch's weights, float32 ``(n,)``."""
    result = torch.empty(lookup.num_ids, dtype=torch.float32, device="cpu")
    call.session.engine.weight_gradient(lookup, address(grad), grad.stride(0), address(result))
    return result


def graph_backward(call: Call, batch: Batch, grad: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The backward of a lookup in a graph: updates rows, and returns the gradient of the weights.

    Args:
        call: with `update` as the graph says.
        batch: what was looked up.
        grad: of the output.
        rows: what stands for rows in the graph.

    Returns:
        float32 ``(n,)`` on the CPU; without elements if there are no weights.
    """
    if call.update:
        # Compiled code goes on to use the memory of what it hands over.
        batch, grad = own_copy(batch), grad.clone()
    generation = call.session.generation
    found = make_lookup(batch, call.features)
    grad = readable(grad)
    weight_grad = torch.empty(0, device="cpu")
    if batch.weights is not None:
        weight_grad = weight_gradient(call, found, grad)
    if call.update and reaches_rows(torch.autograd.graph.get_gradient_edge(rows).node):
        # Nothing tells the order of the forwards: autograd takes them from the last to the first.
        order, tensors = -next(_forwards), (batch.ids, batch.lengths, batch.weights)
        found, grad = what_trains(call, batch, found, grad)
        add(call.session, Gradient(found, generation, order, tensors, grad, call.tables, call.optimizer), None)
    return weight_grad
