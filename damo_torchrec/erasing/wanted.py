"""`Wanted`: which rows are to be forgotten, by the tables that checkpoints and deltas have."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """Rows that are to be forgotten.

    Args:
        ids: int64, ascending and distinct, by the name that a table has now.
        numbers: of these tables, as far as there are such now. A table that was renamed has kept its number.
    """

    ids: Mapping[str, Ids]
    numbers: Mapping[int, str] = field(default_factory=dict)

    @staticmethod
    def of(ids: Mapping[str, Ids], numbers: Mapping[str, int]) -> "Wanted":
        """These ids of a store whose tables have these numbers now."""
        distinct = {name: np.unique(np.asarray(of_table, np.int64)) for name, of_table in ids.items()}
        return Wanted(distinct, {number: name for name, number in numbers.items() if name in ids})

    def of_table(self, name: str, number: int) -> Ids:
        """Those of a table that has this name and number, in what is of the store's line of states."""
        return self.ids.get(self.numbers.get(number, name), np.empty(0, np.int64))

    def by_name(self) -> "Wanted":
        """The same for what is of another line of states, where numbers mean nothing."""
        return Wanted(self.ids)
