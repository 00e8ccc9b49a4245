"""One update over several stores: all of them make it, or none does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from damo_torchrec import _core
from damo_torchrec.store.waiting import Gradient
from damo_torchrec.tensors import address


@dataclass(frozen=True)
class Update:
    """What is about to be applied to one store, or skipped.

    Args:
        gradients: none where they wait for more passes.
        scale: what they were multiplied by.
        finite: whether they, and the rows after them, are finite.
        digest: a number that is the same for all stores that make the same step.
        clock: the seconds that the lives of rows go by.
        shared: by the engine's number, what of all stores decides the lives of a table's rows; in the same order in all
            of them.
    """

    gradients: Sequence[Gradient]
    scale: float
    finite: bool = True
    digest: int = 0
    clock: float = 0.0
    shared: Sequence[tuple[int, _core.LifeCensus]] = ()

    @property
    def parts(self) -> list[tuple[_core.Lookup, int, int]]:
        """The gradients as the engine takes them. They have to live as long as these."""
        return [(g.lookup, address(g.grad), g.grad.stride(0)) for g in self.gradients]


class Agreement(Protocol):
    """Those who train the other stores."""

    def settle(self, prepare: Callable[[], Update]) -> Update:
        """Calls `prepare`, as all the others do, and returns its update: not finite if that of any of them is not.

        The time is the same for all, and `shared` is of all.

        Raises:
            Exception: what `prepare` raises.
            DamoError: another's `prepare` raised something, or made another step.
        """

    def exchange(self, life: bytes) -> list[bytes]:
        """The lives of a table in all stores, in the same order in all of them: `_core.Store.backward` asks for them.

        Raises:
            DamoError: another store's process has ended.
        """

    def conclude(self, error: BaseException | None) -> None:
        """Ends an update in which lives may be exchanged: all call it, whether they have made it or could not.

        The others hear of one that could not at once, in their exchange or here.

        Args:
            error: why this store could not make the update; None if it has made it.

        Raises:
            DamoError: `error` is None, and another store could not make the update, or its process has ended.
        """

    def total(self, value: int) -> int:
        """The sum of the values of all, who all call this. Raises DamoError if one has ended."""


def check_most_rows(agreement: Agreement, table: str, most: int, rows: int, fresh: int) -> None:
    """Raises ValueError on all ranks if they would have more rows of a table than there may be. All call it.

    Args:
        agreement: with the other ranks.
        table: its name.
        most: rows that it may have, on all ranks.
        rows: that this one has.
        fresh: that are to come here.
    """
    there, more = agreement.total(rows), agreement.total(fresh)
    if more and there + more > most:
        raise ValueError(
            f"table {table!r} has {there} rows on all ranks and may have {most} (max_rows): {more} more were to be set"
        )
