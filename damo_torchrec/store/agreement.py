"""One update over several stores: all of them make it, or none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from damo_torchrec.store.waiting import Gradient


@dataclass(frozen=True)
class Update:
    """What is about to be applied to one store, or skipped.

    Args:
        gradients: none where they wait for more passes.
        scale: what they were multiplied by.
        finite: whether they, and the rows after them, are finite.
        digest: a number that is the same for all stores that make the same step.
    """

    gradients: Sequence[Gradient]
    scale: float
    finite: bool = True
    digest: int = 0


class Agreement(Protocol):
    """Those who train the other stores."""

    def settle(self, prepare: Callable[[], Update]) -> Update:
        """Calls `prepare`, as all the others do, and returns its update: not finite if that of any of them is not.

        Raises:
            Exception: what `prepare` raises.
            DamoError: another's `prepare` raised something, or made another step.
        """
