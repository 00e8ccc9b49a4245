"""How the rows of a table differ between two checkpoints: both are read side by side, in the order of ids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from damo_torchrec.store.rows import Ids, Rows


@dataclass(frozen=True)
class Differences:
    """Of some rows of two tables with ids in one range.

    Args:
        gone: ids that only the first has, ascending.
        added: ids that only the second has.
        changed: ids of rows that both have, and that are not the same bits in both.
        largest_change: the largest difference of a weight of these; 0 where there is none, infinite where
            one is NaN.
    """

    gone: Ids
    added: Ids
    changed: Ids
    largest_change: float


def compare(before: Iterator[Rows], after: Iterator[Rows], *, weights: bool, all_else: bool) -> Iterator[Differences]:
    """How rows differ, some at a time, ascending.

    Args:
        before: rows, ascending by id.
        after: likewise.
        weights: whether weights are compared: they are as many in a row, and of one dtype.
        all_else: whether optimizer state, counts and last steps are, too: the optimizer is the same.
    """
    first, second = next(before, None), next(after, None)
    while first is not None or second is not None:
        if first is None or second is None:
            yield _alone(first, second)
            first, second = (
                next(before, None) if first is not None else None,
                next(after, None) if second is not None else None,
            )
            continue
        last = min(first.ids[-1], second.ids[-1])
        ends = [int(rows.ids.searchsorted(last, side="right")) for rows in (first, second)]
        yield _compare(first[: ends[0]], second[: ends[1]], weights, all_else)
        first, second = _rest(first, ends[0], before), _rest(second, ends[1], after)


def _rest(rows: Rows, begin: int, more: Iterator[Rows]) -> Rows | None:
    return rows[begin:] if begin < len(rows) else next(more, None)


def _alone(first: Rows | None, second: Rows | None) -> Differences:
    none = np.empty(0, np.int64)
    return Differences(none if first is None else first.ids, none if second is None else second.ids, none, 0.0)


def _compare(first: Rows, second: Rows, weights: bool, all_else: bool) -> Differences:
    both, at_first, at_second = np.intersect1d(first.ids, second.ids, assume_unique=True, return_indices=True)
    a, b = first[at_first], second[at_second]
    changed = np.zeros(len(both), np.bool_)
    largest = 0.0
    if weights and len(both):
        other = _bits(a.weights) != _bits(b.weights)
        changed |= other.any(axis=1)
        if other.any():
            with np.errstate(invalid="ignore"):
                differences = np.abs(a.weights[other].astype(np.float64) - b.weights[other])
            largest = math.inf if np.isnan(differences).any() else float(differences.max())
    if all_else:
        changed |= (_bits(a.state) != _bits(b.state)).any(axis=1)
        changed |= (a.counts != b.counts) | (a.last_steps != b.last_steps)
    gone = np.setdiff1d(first.ids, both, assume_unique=True)
    added = np.setdiff1d(second.ids, both, assume_unique=True)
    return Differences(gone, added, both[changed], largest)


def _bits(floats: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(floats).view(np.uint32)
