"""When a row is dead: by its header, and its table's ladder. csrc/row/ladder.h is the same for the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# 0, 1, 2 to 3, 4 to 7, ... updates, and sightings of ids that have no row.
CLASSES = 34
PARTS = 256  # that ids fall into: rows of one step go by these
END = 2**32 * PARTS  # after all positions

_ROW_CLASSES = CLASSES - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Headers = npt.NDArray[np.uint32]
"""``(n, 2)``: of each row the table's iteration at its last update, and how many updates it has had."""

_Ids = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


def position(step: int, part: int = 0) -> int:
    """Where rows stand whose last update was at `step`, and whose ids fall into `part`, of `PARTS`."""
    return step * PARTS + part


@dataclass(frozen=True)
class Ladder:
    """A position for each class of update counts: a row that stands before that of its class is dead.

    Args:
        positions: of the classes, the last being that of sightings, which go with the whole step.

    Raises:
        ValueError: these are not 34 positions of steps of 32 bits.
    """

    positions: tuple[int, ...] = (0,) * CLASSES
    _rungs: npt.NDArray[np.uint64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.positions) != CLASSES or not all(0 <= at < END for at in self.positions):
            raise ValueError(f"a ladder is {CLASSES} positions from 0 to {END - 1}, got {self.positions!s:.200}")
        object.__setattr__(self, "_rungs", np.array(self.positions[:_ROW_CLASSES], dtype=np.uint64))

    @staticmethod
    def of_steps(steps: Sequence[int]) -> "Ladder":
        """By which rows are dead whose last update was before the step of their class."""
        return Ladder(tuple(position(step) for step in steps))

    def dead(self, headers: Headers, ids: _Ids) -> _Bools:
        """Which rows are dead: bool ``(n,)``.

        Args:
            headers: uint32 ``(n, 2)``.
            ids: int64 ``(n,)``.
        """
        last_steps, counts = headers[:, 0].astype(np.uint64), headers[:, 1]
        stand = last_steps * np.uint64(PARTS) + id_parts(ids)
        dead: _Bools = stand < self._rungs[np.frexp(counts.astype(np.float64))[1]]
        return dead

    def is_above(self, other: "Ladder") -> bool:
        """Whether a row may be dead by this one that is not by `other`."""
        return self.over(other) != other

    def over(self, other: "Ladder") -> "Ladder":
        """The lowest ladder by which all is dead that is dead by either."""
        return Ladder(tuple(max(pair) for pair in zip(self.positions, other.positions, strict=True)))


def id_parts(ids: _Ids) -> npt.NDArray[np.uint8]:
    """The part that each id falls into: uint8 ``(n,)``."""
    mixed = ids.view(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8)
