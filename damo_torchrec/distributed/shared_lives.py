"""The lives of rows of tables that are spread over ranks: one rule, by the rows of all of them."""

from collections.abc import Sequence

from damo_torchrec import _core
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session

_Parts = list[tuple[_core.Lookup, int, int]]
_NOTHING = _core.LifeCensus(0, 0, 0)
_INT64 = 1 << 63


class SharedLives:
    """Those of the tables of a rank's store.

    Args:
        session: this rank's.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tables: list[OpenTable] = []

    def add(self, tables: Sequence[OpenTable]) -> None:
        """Says that tables are spread over the ranks; in the same order on all of them."""
        self._tables += [table for table in tables if table not in self._tables]

    def __len__(self) -> int:
        return len(self._tables)

    def census(self, parts: _Parts) -> list[int]:
        """What decides an update of this rank's rows: three numbers for each table, which may be added up."""
        counted = [self._census(table, parts) for table in self._tables]
        return [number for one in counted for number in (one.ids, one.rows, one.newest)]

    def of_all(self, sums: Sequence[int]) -> list[tuple[int, _core.LifeCensus]]:
        """What decides it of all ranks' rows, as the engine takes it, of the sums of what all said."""
        with_life = [(i, table) for i, table in enumerate(self._tables) if _has_life(table)]
        return [(table.index, _core.LifeCensus(*sums[3 * i : 3 * i + 3])) for i, table in with_life]

    def digest(self) -> int:
        """An int64 that is the same on all ranks if their lives are alike."""
        found = [self._session.engine.life_digest(t.index) if _has_life(t) else 0 for t in self._tables]
        return hash(tuple(found)) % (2 * _INT64) - _INT64

    def own(self) -> list[bytes]:
        """The lives of this rank's rows, by table; empty where there is none."""
        found = [self._session.engine.life_bytes(t.index) if _has_life(t) else None for t in self._tables]
        return [life or b"" for life in found]

    def align(self, of_ranks: Sequence[Sequence[bytes]]) -> None:
        """Has the lives of this rank's rows be like those of all others, and count its rows anew.

        Args:
            of_ranks: what `own` has said on all of them, by rank.
        """
        for table, lives in zip(self._tables, zip(*of_ranks, strict=True), strict=True):
            if _has_life(table):
                self._session.engine.align_life(table.index, list(lives))

    def _census(self, table: OpenTable, parts: _Parts) -> _core.LifeCensus:
        return self._session.engine.life_census(table.index, parts) if _has_life(table) else _NOTHING


def _has_life(table: OpenTable) -> bool:
    return table.life is not None and not table.gone
