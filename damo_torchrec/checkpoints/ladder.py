"""When a row is dead: by its header, and its table's ladder. csrc/row/ladder.h is the same for the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# 0, 1, 2 to 3, 4 to 7, ... updates, and sightings of ids that have no row.
CLASSES = 34
PARTS = 256  # that ids fall into

_ROW_CLASSES = CLASSES - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

Headers = npt.NDArray[np.uint32]
"""``(n, 2)``: of each row the table's iteration at its last update, and how many updates it has had."""

_Ids = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ladder:
    """A step for each class of update counts: a row whose last step is below that of its class is dead.

    Args:
        steps: of the classes, the last being that of sightings.
        part: of rows that were set at `steps[0]` and not updated since, the ids whose part is below this are dead.

    Raises:
        ValueError: these are not 34 steps of 32 bits and a part from 0 to 256.
    """

    steps: tuple[int, ...] = (0,) * CLASSES
    part: int = 0
    _rungs: npt.NDArray[np.uint32] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.steps) != CLASSES or not all(0 <= step < 2**32 for step in self.steps):
            raise ValueError(f"a ladder has {CLASSES} steps from 0 to {2**32 - 1}, got {self.steps!s:.200}")
        if not 0 <= self.part <= PARTS:
            raise ValueError(f"a ladder's part is from 0 to {PARTS}, got {self.part}")
        object.__setattr__(self, "_rungs", np.array(self.steps[:_ROW_CLASSES], dtype=np.uint32))

    @staticmethod
    def of_numbers(numbers: Sequence[int]) -> "Ladder":
        """That of `numbers`. Raises ValueError if there is none."""
        if len(numbers) != CLASSES + 1:
            raise ValueError(f"a ladder is {CLASSES + 1} numbers, got {len(numbers)}")
        return Ladder(tuple(numbers[:CLASSES]), numbers[CLASSES])

    def numbers(self) -> list[int]:
        """The steps and the part, as documents have them."""
        return [*self.steps, self.part]

    def dead(self, headers: Headers, ids: _Ids) -> _Bools:
        """Which rows are dead: bool ``(n,)``.

        Args:
            headers: uint32 ``(n, 2)``.
            ids: int64 ``(n,)``.
        """
        last_steps, counts = headers[:, 0], headers[:, 1]
        dead: _Bools = last_steps < self._rungs[np.frexp(counts.astype(np.float64))[1]]
        if self.part > 0:
            dead |= (counts == 0) & (last_steps == self.steps[0]) & (id_parts(ids) < self.part)
        return dead

    def is_above(self, other: "Ladder") -> bool:
        """Whether a row may be dead by this one that is not by `other`."""
        return self.over(other) != other

    def over(self, other: "Ladder") -> "Ladder":
        """The lowest ladder by which all is dead that is dead by either."""
        steps = tuple(max(pair) for pair in zip(self.steps, other.steps, strict=True))
        part = max((ladder.part for ladder in (self, other) if ladder.steps[0] == steps[0]), default=0)
        return Ladder(steps, part)


def id_parts(ids: _Ids) -> npt.NDArray[np.uint8]:
    """The part that each id falls into: uint8 ``(n,)``."""
    mixed = ids.view(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8)
