"""An all-to-all of rows with a gradient: it overlaps with what comes between its start and its wait, both ways."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.autograd.function import once_differentiable
from torchrec.distributed.types import Awaitable


@dataclass(frozen=True)
class Splits:
    """Which rows go where.

    Args:
        to_ranks: how many rows, or floats, each rank gets of this one.
        from_ranks: how many this one gets of each.
    """

    to_ranks: list[int]
    from_ranks: list[int]


def exchange(rows: torch.Tensor, splits: Splits, group: distributed.ProcessGroup) -> Awaitable[torch.Tensor]:
    """Begins to send rows to all ranks, in the order of these, and returns what waits for theirs.

    The gradient of what arrives goes back the same way, and neither is divided by the number of ranks.

    Args:
        rows: ``(Σ to_ranks, ...)``.
        splits: which go where.
        group: of the ranks.

    Returns:
        Awaitable of ``(Σ from_ranks, ...)``.
    """
    sent = _Flight(splits, group)
    token = _Start.apply(rows, sent)  # type: ignore[no-untyped-call]  # torch's
    return _Arrival(token, sent)


class _Arrival(Awaitable[torch.Tensor]):
    def __init__(self, token: torch.Tensor, sent: "_Flight") -> None:
        super().__init__()
        self._token, self._sent = token, sent

    def _wait_impl(self) -> torch.Tensor:
        arrived: torch.Tensor = _Arrive.apply(self._token, self._sent)  # type: ignore[no-untyped-call]  # torch's
        return arrived


class _Flight:
    """Tensors on their way, and the way."""

    def __init__(self, splits: Splits, group: distributed.ProcessGroup) -> None:
        self.splits, self.group = splits, group

    def begin(self, rows: torch.Tensor) -> None:
        self._sent = rows.detach().contiguous()  # kept until it has arrived
        if self.group.size() == 1:
            self._arrived, self._work = self._sent, None
            return
        self._arrived = rows.new_empty(sum(self.splits.from_ranks), *rows.shape[1:])
        self._work = distributed.all_to_all_single(
            self._arrived, self._sent, self.splits.from_ranks, self.splits.to_ranks, group=self.group, async_op=True
        )

    def end(self) -> torch.Tensor:
        if self._work is not None:
            self._work.wait()
        arrived = self._arrived
        del self._sent, self._arrived, self._work
        return arrived

    def back(self) -> "_Flight":
        """The way back."""
        return _Flight(Splits(self.splits.from_ranks, self.splits.to_ranks), self.group)


class _Start(torch.autograd.Function):
    """Forward begins; backward, which comes last, waits for what `_Arrive` has begun."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sent: _Flight) -> torch.Tensor:
        sent.begin(rows)
        ctx.sent = sent
        return rows.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.sent.returned.end(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: torch.Tensor, sent: _Flight) -> torch.Tensor:
        ctx.sent = sent
        return sent.end()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.sent.returned = ctx.sent.back()
        ctx.sent.returned.begin(grad)
        return grad.new_empty(0), None
