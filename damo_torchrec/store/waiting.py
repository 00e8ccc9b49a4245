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
        self._accumulators: weakref.WeakSet[Accumulator] = weakref.WeakSet()

    def watch(self, accumulator: Accumulator) -> None:
        """From now on asks this one, too, for as long as it lives: what it has not applied goes with it."""
        self._accumulators.add(accumulator)

    def __bool__(self) -> bool:
        return any(len(accumulator) for accumulator in self._accumulators)

    def clear(self) -> None:
        """Drops what waits."""
        for accumulator in self._accumulators:
            accumulator.clear()

    def check_none(self, what: str) -> None:
        """Raises ValueError, which says `what` cannot be done, if there are any."""
        if self:
            raise ValueError(
                f"cannot {what} in the middle of accumulate({self.calls_per_update}): "
                "gradients of earlier backward calls wait"
            )
