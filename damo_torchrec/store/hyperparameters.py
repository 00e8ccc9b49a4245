"""What each table is trained with: one optimizer, also where several collections train it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from typing import Protocol

from damo_torchrec.optim.spec import OptimizerSpec


class Optimizer(Protocol):
    """What a collection trains its tables with."""

    def specs(self) -> Mapping[str, OptimizerSpec]:
        """The update rules with the learning rates of now, by table."""


class Hyperparameters:
    """Which optimizers have trained which table of one store. Not thread-safe: the session's mutex guards it."""

    def __init__(self) -> None:
        # References without callbacks: an interrupt that comes while one runs is lost.
        self._trained_by: dict[str, list[weakref.ref[Optimizer]]] = {}

    def agreed(self, optimizers: Iterable[Optimizer]) -> dict[str, OptimizerSpec]:
        """By table, what an update with these optimizers uses.

        Raises:
            ValueError: two of them differ for a table, or one differs from another that has trained the table before,
                and whose collection still lives.
        """
        agreed: dict[str, OptimizerSpec] = {}
        for optimizer in optimizers:
            for table, spec in optimizer.specs().items():
                if agreed.setdefault(table, spec) != spec:
                    raise _differ(table, agreed[table], spec)
                self._note(table, optimizer)
                if self._other(table, spec) is not None:
                    gc.collect()  # what a notebook's cell has replaced may still await that
                    if (other := self._other(table, spec)) is not None:
                        raise _differ(table, other, spec)
        return agreed

    def forget(self, table: str) -> None:
        """Says that the table is none of those any more."""
        self._trained_by.pop(table, None)

    def _note(self, table: str, optimizer: Optimizer) -> None:
        references = self._trained_by.setdefault(table, [])
        if not any(reference() is optimizer for reference in references):
            living = [reference for reference in references if reference() is not None]
            self._trained_by[table] = [*living, weakref.ref(optimizer)]

    def _other(self, table: str, spec: OptimizerSpec) -> OptimizerSpec | None:
        """What one of the table's optimizers says that is not this."""
        references = self._trained_by[table]
        if len(references) == 1:
            return None
        living = [optimizer for reference in references if (optimizer := reference()) is not None]
        return next((other for optimizer in living if (other := optimizer.specs()[table]) != spec), None)


def _differ(table: str, one: OptimizerSpec, other: OptimizerSpec) -> ValueError:
    return ValueError(
        f"two collections train the table {table!r} and differ in its optimizer: {one.difference(other)}. Give "
        "both the same, in fused_optimizer.param_groups too, or delete the collection that is not used any more"
    )
