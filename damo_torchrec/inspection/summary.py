"""Figures of a table's rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from damo_torchrec.progress import Progress, counting
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.rows import Rows, scan_rows
from damo_torchrec.store.session import Session


@dataclass
class Spread:
    """The least, the mean and the largest of some numbers; None while there are none."""

    n: int = 0
    total: float = 0.0
    least: float | None = None
    largest: float | None = None

    def add(self, numbers: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> None:
        """Takes more of them in."""
        if len(numbers) == 0:
            return
        least, largest = numbers.min().item(), numbers.max().item()
        self.n += len(numbers)
        self.total += float(numbers.sum(dtype=np.float64))
        self.least = least if self.least is None else min(self.least, least)
        self.largest = largest if self.largest is None else max(self.largest, largest)

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return self.total / self.n if self.n else None


@dataclass
class TableSummary:
    """Figures of the rows of a table.

    Args:
        rows: how many.
        norms: the L2 norms of their weights, of those that are finite.
        zero_rows: those whose weights are all 0.
        nonfinite_rows: those with a weight that is NaN or infinite.
        updates: how many each has had since it was made or set.
        last_steps: the table's `iter` when each was last updated.
    """

    rows: int = 0
    norms: Spread = field(default_factory=Spread)
    zero_rows: int = 0
    nonfinite_rows: int = 0
    updates: Spread = field(default_factory=Spread)
    last_steps: Spread = field(default_factory=Spread)

    def add(self, rows: Rows) -> None:
        """Takes more rows in."""
        norms = norms_of(rows)
        finite = np.isfinite(norms)
        self.rows += len(rows)
        self.norms.add(norms[finite])
        self.zero_rows += int((norms == 0).sum())
        self.nonfinite_rows += int((~finite).sum())
        self.updates.add(rows.counts)
        self.last_steps.add(rows.last_steps)


def norms_of(rows: Rows) -> npt.NDArray[np.float64]:
    """L2 norms of weights, in float64, which none of float32 overflows: ``(n,)``."""
    weights = rows.weights.astype(np.float64)
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", weights, weights))
    return norms


def summarize(session: Session, table: OpenTable, progress: Progress) -> TableSummary:
    """Reads all rows of a table."""
    summary = TableSummary()
    advance = counting(progress, f"rows of table {table.name!r}", session.engine.rows(table.index))
    for rows in scan_rows(session, table):
        summary.add(rows)
        advance(len(rows))
    return summary


def top_rows(
    session: Session, table: OpenTable, n: int, *, by_updates: bool, least: bool, progress: Progress
) -> tuple[Rows, npt.NDArray[np.float64]]:
    """The `n` rows with the largest norms, or most updates, and their norms; of equals those with the least ids.

    Rows with a weight that is not finite have the largest norm.

    Args:
        session: which.
        table: of it.
        n: how many, at most.
        by_updates: by updates rather than by norms.
        least: those with the smallest norms, or fewest updates.
        progress: told how many rows were read.
    """
    best: Rows | None = None
    advance = counting(progress, f"rows of table {table.name!r}", session.engine.rows(table.index))
    for rows in scan_rows(session, table):
        both = rows if best is None else _joined(best, rows)
        best = both[np.lexsort((both.ids, _keys(both, by_updates, least)))[:n]]
        advance(len(rows))
    if best is None:
        return _none(), np.empty(0)
    return best, norms_of(best)


def _keys(rows: Rows, by_updates: bool, least: bool) -> npt.NDArray[np.float64]:
    """What rows are sorted by, ascending."""
    values = rows.counts.astype(np.float64) if by_updates else norms_of(rows)
    values[np.isnan(values)] = math.inf
    return values if least else -values


def _joined(some: Rows, others: Rows) -> Rows:
    return Rows(*(np.concatenate([getattr(some, name), getattr(others, name)]) for name in vars(some)))


def _none() -> Rows:
    ids, floats = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    return Rows(ids, floats, floats, ids, ids)
