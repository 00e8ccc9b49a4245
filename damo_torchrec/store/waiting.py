"""Gradients that wait, by `EmbeddingStore.accumulate`, for more of them: what a store has to know of that."""

import weakref
from typing import Protocol


class Accumulator(Protocol):
    """What keeps gradients that wait."""

    def __len__(self) -> int:
        """How many do."""

    def clear(self) -> None:
        """Drops them."""


class WaitingGradients:
    """Everything of one store that waits. Not thread-safe: the session's mutex guards it.

    Attributes:
        calls_per_update: of backward, by a collection.
    """

    def __init__(self) -> None:
        self.calls_per_update = 1
        # References without callbacks: an interrupt that comes while one runs is lost, as with a WeakSet's.
        self._accumulators: list[weakref.ref[Accumulator]] = []

    def watch(self, accumulator: Accumulator) -> None:
        """From now on asks this one, too, for as long as it lives: what it has not applied goes with it."""
        self._accumulators = [weakref.ref(other) for other in self._living()] + [weakref.ref(accumulator)]

    def __bool__(self) -> bool:
        return any(len(accumulator) for accumulator in self._living())

    def clear(self) -> None:
        """Drops what waits."""
        for accumulator in self._living():
            accumulator.clear()

    def _living(self) -> list[Accumulator]:
        return [living for accumulator in self._accumulators if (living := accumulator()) is not None]

    def check_none(self, what: str) -> None:
        """Raises ValueError, which says `what` cannot be done, if there are any."""
        if self:
            raise ValueError(
                f"cannot {what} in the middle of accumulate({self.calls_per_update}): "
                "gradients of earlier backward calls wait"
            )
