"""The engine's output, one tensor for each feature, where features differ in their number of bags.

Views of it would give autograd a gradient as large as the whole for each of them, to be added up. These share its
memory, and the gradient is put together once. Each can be changed in place, as it could not if torch.split had made it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def parts_of_output(output: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
    """The parts, one behind the other, of an output that nothing else uses.

    Args:
        output: ``(Σ bags·dim,)``, contiguous.
        shapes: of the parts: (bags, dim).
    """
    if len(shapes) == 1:
        return [output.view(shapes[0])]
    return list(_Parts.apply(output, shapes))  # type: ignore[no-untyped-call]  # torch's


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, ...]:
        ctx.shapes = shapes
        ctx.set_materialize_grads(False)
        parts, offset = [], output.storage_offset()
        for shape in shapes:
            parts.append(output.new_empty(0).set_(output.untyped_storage(), offset, shape, (shape[1], 1)))
            offset += shape[0] * shape[1]
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None
        whole = given[0].new_empty(sum(bags * dim for bags, dim in ctx.shapes))
        offset = 0
        for (bags, dim), grad in zip(ctx.shapes, grads, strict=True):
            part = whole[offset : offset + bags * dim].view(bags, dim)
            offset += bags * dim
            part.zero_() if grad is None else part.copy_(grad)
        return whole, None
