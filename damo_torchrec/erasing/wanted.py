"""`Wanted`: which rows are to be forgotten, by the tables that checkpoints and deltas have."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from damo_torchrec.checkpoints.manifest import Manifest

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Wanted:
    """Rows that are to be forgotten.

    Args:
        ids: int64, ascending and distinct, by the name that a table has now.
        numbers: names by the numbers that tables have or had. One that was renamed has kept its number, and one that
            was converted its name.
    """

    ids: Mapping[str, Ids]
    numbers: Mapping[int, str] = field(default_factory=dict)

    @staticmethod
    def of(ids: Mapping[str, Ids], now: Mapping[str, int], earlier: Iterable[Manifest]) -> "Wanted":
        """These ids of a store.

        Args:
            ids: int64, by the name of a table.
            now: the numbers that tables have.
            earlier: manifests of the store's line of states. What had such a name there is the same table, also under
                the names that it had before, unless its number is another table's by now.
        """
        distinct = {name: np.unique(np.asarray(of_table, np.int64)) for name, of_table in ids.items()}
        numbers = {
            manifest.tables[name].number: name for manifest in earlier for name in ids if name in manifest.tables
        }
        owners = {number: name for name, number in now.items()}
        return Wanted(distinct, {number: owners.get(number, name) for number, name in {**numbers, **owners}.items()})

    def of_table(self, name: str, number: int) -> Ids:
        """Those of a table that has this name and number, in what is of the store's line of states."""
        return self.ids.get(self.numbers.get(number, name), np.empty(0, np.int64))

    def by_name(self) -> "Wanted":
        """The same for what is of another line of states, where numbers mean nothing."""
        return Wanted(self.ids)
