"""Rows that a delta brings, as they are found before the store has them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from damo_torchrec.checkpoints.ladder import Ladder
from damo_torchrec.serving.arrays import Array


@dataclass(frozen=True)
class TableOverlay:
    """Changes of one table.

    Args:
        ids: int64 ``(n,)``, ascending: of rows that are new or changed.
        weights: float32 ``(n, dim)``: what they are now.
        deleted: int64 ``(m,)``, ascending: of rows that are gone.
        unseen_rows: float32 ``(k, dim)`` of k ids: what they read as without rows.
        headers: uint32 ``(n, 2)``, of `ids`, when and how often the rows were updated; None where rows do not die.
        ladder: by which rows of the store die that have lived until now; None if it is as it was.
        stored: of k ids, whether the store has rows, bool ``(k,)``, and their headers, uint32 ``(k, 2)``.
    """

    ids: Array
    weights: Array
    deleted: Array
    unseen_rows: Callable[[Array], Array]
    headers: Array | None = None
    ladder: Ladder | None = None
    stored: Callable[[Array], tuple[Array, Array]] | None = None

    def touches(self, ids: Array) -> Array:
        """Which ids are changed, deleted, or of rows that are dead: bool ``(k,)``."""
        return _find(self.ids, ids)[1] | self._gone(ids)

    def patch(self, ids: Array, rows: Array) -> None:
        """Puts changes in the place of what the store has: in `rows`, float32 ``(k, dim)``, of `ids`."""
        gone = self._gone(ids)
        if gone.any():
            rows[gone] = self.unseen_rows(ids[gone])
        place, changed = _find(self.ids, ids)
        if changed.any():
            rows[changed] = self.weights[place[changed]]

    def _gone(self, ids: Array) -> Array:
        """Which ids are deleted, or have a dead row in the store, or none: bool ``(k,)``. Some may be new ones."""
        _, gone = _find(self.deleted, ids)
        if self.ladder is not None and self.stored is not None:
            there, headers = self.stored(ids)  # the store may have come to follow the ladder since it was looked up
            gone = gone | ~there | self.ladder.dead(headers, ids)
        return gone


# By table.
Overlay = Mapping[str, TableOverlay]


def _find(ascending: Array, ids: Array) -> tuple[Array, Array]:
    """Where ids are, and whether."""
    if len(ascending) == 0:
        return np.empty(0, dtype=np.int64), np.zeros(len(ids), dtype=bool)
    place = ascending.searchsorted(ids)
    place[place == len(ascending)] = 0
    return place, ascending[place] == ids


def pool(rows: Array, lengths: Array, weights: Array | None, mean: bool) -> Array:
    """Sums, or weighted means, of bags of rows, in the order and with the rounding of the engine.

    Args:
        rows: float32 ``(n, dim)``, by bag.
        lengths: int64 ``(bags,)``, with the sum n.
        weights: float32 ``(n,)``, or None.
        mean: whether to divide by the sum of the weights, or of as many ones; a bag of sum 0 is zeros.

    Returns: float32 ``(bags, dim)``.
    """
    starts = np.cumsum(lengths) - lengths
    pooled = np.zeros((len(lengths), rows.shape[1]), dtype=np.float32)
    totals = np.zeros(len(lengths), dtype=np.float32)
    for place in range(int(lengths.max(initial=0))):
        bags = np.flatnonzero(lengths > place)
        members = starts[bags] + place
        weight = np.ones(len(bags), dtype=np.float32) if weights is None else weights[members]
        pooled[bags] += weight[:, None] * rows[members]
        totals[bags] += weight
    if mean:
        with np.errstate(divide="ignore", invalid="ignore"):
            pooled = np.where(totals[:, None] == 0, np.float32(0), pooled / totals[:, None])
    if weights is None:  # the row itself, with the signs of its zeros
        alone = lengths == 1
        pooled[alone] = rows[starts[alone]]
    return pooled
