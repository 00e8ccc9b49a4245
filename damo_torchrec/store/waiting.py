"""Gradients on their way to rows: of a backward pass that is under way, or, by `accumulate`, of earlier ones."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from damo_torchrec import _core
from damo_torchrec.store.hyperparameters import Optimizer
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.torch_at_use import torch


@dataclass(frozen=True)
class Gradient:
    """That of one lookup's output, and all that the lookup points into.

    Args:
        lookup: the engine's.
        generation: the session's at the time of the lookup.
        order: among the gradients that an update sums, which is in this order.
        tensors: the batch's, and those that the lookup points into.
        grad: float32 on the CPU.
        tables: that the lookup reads.
        optimizer: what they are trained with.
    """

    lookup: _core.Lookup
    generation: int
    order: int
    tensors: tuple[torch.Tensor | None, ...]
    grad: torch.Tensor
    tables: Sequence[OpenTable]
    optimizer: Optimizer
    _versions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_versions", self._versions_now())

    def kept(self) -> Gradient:
        """As it is kept beyond its backward pass: the caller may go on to use the gradient's memory."""
        return replace(self, grad=self.grad.clone())

    def scaled(self, factor: float) -> Gradient:
        """The same, multiplied by a loss scale's change."""
        return self if factor == 1 else replace(self, grad=self.grad * factor)

    def check_unchanged(self) -> None:
        """Raises RuntimeError, as autograd does, if the batch or the gradient was changed in place since."""
        if self._versions != self._versions_now():
            raise RuntimeError(
                "ids, lengths, weights or the gradient of a lookup were changed in place before its rows were updated, "
                "which is at the end of backward(), with accumulate(n) of the last of n"
            )

    def _versions_now(self) -> tuple[int, ...]:
        tensors = [tensor for tensor in (*self.tensors, self.grad) if tensor is not None]
        return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)  # torch's


class BackwardPass:
    """What one call of ``backward()`` has brought so far: `gradients`, as they came."""

    def __init__(self) -> None:
        self.gradients: list[Gradient] = []

    def in_order(self) -> list[Gradient]:
        """The gradients in the order in which they are summed."""
        return sorted(self.gradients, key=lambda gradient: gradient.order)


class WaitingGradients:
    """Everything of one store that waits. Not thread-safe: the session's mutex guards it.

    It is true where gradients of passes that have ended wait for more.

    Attributes:
        passes_per_update: backward passes that make one update.
    """

    def __init__(self) -> None:
        self.passes_per_update = 1
        self._ended: list[tuple[float, list[Gradient]]] = []  # of passes that have ended, with the loss scale of each
        # Passes under way, by the number of autograd's task, which keeps them: one that fails goes with it. References
        # without callbacks: an interrupt that comes while one runs is lost.
        self._under_way: dict[int, weakref.ref[BackwardPass]] = {}

    def under_way(self, task: int) -> BackwardPass | None:
        """The pass that autograd's task of this number makes, if it has begun."""
        reference = self._under_way.get(task)
        return reference() if reference is not None else None

    def begin(self, task: int) -> BackwardPass:
        """A new pass. The caller keeps it."""
        begun = BackwardPass()
        living = {number: other for number, other in self._under_way.items() if other() is not None}
        self._under_way = {**living, task: weakref.ref(begun)}
        return begun

    def end(self, gradients: list[Gradient], scale: float) -> list[Gradient]:
        """What to update with when a pass has brought these, with a loss scale, or nothing: then they wait, too."""
        if len(self._ended) + 1 < self.passes_per_update:
            self._ended = [*self._ended, (scale, [gradient.kept() for gradient in gradients])]
            return []
        return [*self.take(scale), *gradients]

    def take(self, scale: float) -> list[Gradient]:
        """What waits, with this loss scale. It does no more.

        Raises:
            RuntimeError: as `Gradient.check_unchanged`. Half of an accumulation cannot be made whole.
        """
        ended, self._ended = self._ended, []
        for _, gradients in ended:
            for gradient in gradients:
                gradient.check_unchanged()
        return [gradient.scaled(scale / then) for then, gradients in ended for gradient in gradients]

    def clear(self) -> None:
        """Drops what waits."""
        self._ended = []

    def __bool__(self) -> bool:
        return bool(self._ended)

    def check_none(self, what: str) -> None:
        """Raises ValueError, which says `what` cannot be done, if there are any."""
        if self:
            raise ValueError(
                f"cannot {what} in the middle of accumulate({self.passes_per_update}): gradients of {len(self._ended)} "
                "backward passes wait, which apply_accumulated() applies"
            )
