"""What of a table is otherwise than in an earlier state, streamed from a snapshot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.checkpoints.ladder import CLASSES, END, Headers, Ladder
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session

_BATCH_BYTES = 1 << 20

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
RowIds = Mapping[str, Ids]  # ascending, by table

NO_ROW_LIVES = Ladder((END - 1,) * CLASSES)


class Rows(NamedTuple):
    """Some rows of a table: int64 ``(n,)``, ascending, float32 ``(n, dim)``, uint32 ``(n, 2)``."""

    ids: Ids
    weights: Weights
    headers: Headers

    def at(self, places: slice | npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Rows:
        """Those at some places."""
        return Rows(self.ids[places], self.weights[places], self.headers[places])

    def with_others(self, others: Rows) -> Rows:
        """These and others, of other ids."""
        ids = np.concatenate([self.ids, others.ids])
        order = ids.argsort()
        weights = np.concatenate([self.weights, others.weights])[order]
        return Rows(ids[order], weights, np.concatenate([self.headers, others.headers])[order])


@dataclass(frozen=True)
class Differences:
    """Rows that may be otherwise in some states than in those that led to now.

    Args:
        ids: theirs, by table.
        ladders: by table; rows that are dead by these are gone there.
    """

    ids: RowIds = field(default_factory=dict)
    ladders: Mapping[str, Ladder] = field(default_factory=dict)

    def united(self, other: Differences) -> Differences:
        """Those in these states or in other ones."""
        none, lowest = np.empty(0, np.int64), Ladder()
        return Differences(
            {name: np.union1d(self.ids.get(name, none), other.ids.get(name, none)) for name in {*self.ids, *other.ids}},
            {
                name: self.ladders.get(name, lowest).over(other.ladders.get(name, lowest))
                for name in {*self.ladders, *other.ladders}
            },
        )

    @staticmethod
    def since(session: Session, state: StoreState) -> Differences:
        """Those of what a store has come to since a state in its past, for one that has gone back there."""
        found, ladders = {}, {}
        for table in TableNow.all_of(session):
            changes = ChangedRows(table, state.iters.get(table.name, 0))
            changed = [rows.ids.copy() for rows in changes.changed()]
            deleted = [ids.copy() for ids in changes.deleted()]
            found[table.name] = np.unique(np.concatenate([np.empty(0, np.int64), *changed, *deleted]))
            if table.ladder is not None:
                ladders[table.name] = table.ladder
        return Differences(found, ladders)


@dataclass(frozen=True)
class TableNow:
    """A table of a snapshot.

    Args:
        engine: which has the rows as the snapshot has them.
        table: the table.
        snapshot: of it and others.
        position: where it is there.
    """

    engine: _core.Store
    table: OpenTable
    snapshot: _core.RowSnapshot
    position: int

    @staticmethod
    def all_of(session: Session) -> list[TableNow]:
        """All tables of a store, in one snapshot."""
        engine, catalog = session.engine, session.catalog
        tables = [catalog.open_stored(name, engine) for name in catalog.names()]
        snapshot = _core.RowSnapshot(engine, [table.index for table in tables])
        return [TableNow(engine, table, snapshot, position) for position, table in enumerate(tables)]

    @property
    def name(self) -> str:
        """What it is called."""
        return self.table.name

    @property
    def iter(self) -> int:
        """How many updates it has had."""
        return self.snapshot.states[self.position].iter

    @property
    def ladder(self) -> Ladder | None:
        """By which its rows die; None if they do not."""
        core = self.snapshot.ladder(self.position)
        return None if core is None else Ladder(tuple(core.positions))


class ChangedRows:
    """Rows of a table that changed since a state, and others.

    Args:
        now: the table.
        since: how many updates the table had had in that state.
        wanted: int64, ascending: ids whose rows are wanted as well, or are deleted, where there are none.
        dead_there: older rows that are dead by this ladder are wanted as well.
    """

    def __init__(self, now: TableNow, since: int, wanted: Ids | None = None, dead_there: Ladder | None = None) -> None:
        self._engine = now.engine
        self._table = now.table
        self._since = since
        self._changes = _core.RowChanges(now.snapshot, now.position, since)
        self._scan = self._changes if dead_there is None else _core.RowChanges(now.snapshot, now.position, 0)
        self._dead_there = dead_there
        self._wanted = np.empty(0, np.int64) if wanted is None else wanted
        self._absent: list[Ids] = []
        self._batch = max(_BATCH_BYTES // (4 * now.table.definition.dim), 1)

    def changed(self) -> Iterator[Rows]:
        """Rows that are there, in ascending order of ids, some at a time. What it yields is overwritten."""
        rows = self._empty(self._batch)
        begin = 0
        ids, weights, headers = (array.ctypes.data for array in rows)
        while n := self._scan.next_rows(ids, weights, headers, self._batch):
            end = begin + int(self._wanted[begin:].searchsorted(rows.ids[n - 1], side="right"))
            yield from self._merge(self._among_these(rows.at(slice(n))), self._wanted[begin:end])
            begin = end
        yield from self._merge(rows.at(slice(0)), self._wanted[begin:])

    def _among_these(self, rows: Rows) -> Rows:
        if self._dead_there is None:
            return rows
        wanted = (rows.headers[:, 0] >= self._since) | self._dead_there.dead(rows.headers, rows.ids)
        return rows if wanted.all() else rows.at(wanted)

    def _merge(self, rows: Rows, wanted: Ids) -> Iterator[Rows]:
        """Rows that the scan has found, with those that are wanted of the ids up to there."""
        begin = 0
        for first in range(0, len(wanted), self._batch):
            some = wanted[first : first + self._batch]
            end = int(rows.ids.searchsorted(some[-1], side="right"))
            more = self._read(np.setdiff1d(some, rows.ids[begin:end], assume_unique=True))
            yield rows.at(slice(begin, end)).with_others(more)
            begin = end
        if begin < len(rows.ids):
            yield rows.at(slice(begin, None))

    def _read(self, ids: Ids) -> Rows:
        """Those of the ids that have rows; others are absent."""
        there = np.empty(len(ids), dtype=bool)
        self._engine.contains(self._table.index, ids.ctypes.data, len(ids), there.ctypes.data)
        self._absent.append(ids[~there])
        found = self._empty(int(there.sum()))
        found.ids[:] = ids[there]
        where = self._table.index, found.ids.ctypes.data, len(found.ids)
        self._engine.get(*where, _core.UnseenRows.ZEROS, found.weights.ctypes.data)
        self._engine.describe(*where, state=0, headers=found.headers.ctypes.data, contains=0)
        return found

    def _empty(self, n: int) -> Rows:
        dim = self._table.definition.dim
        return Rows(np.empty(n, np.int64), np.empty((n, dim), np.float32), np.empty((n, 2), np.uint32))

    def deleted(self) -> Iterator[Ids]:
        """Ids of rows that are not there, ascending, some at a time. REQUIRES: `changed` has come to its end."""
        absent = [ids for ids in self._absent if len(ids)]
        found = self._deleted()
        yield from [np.unique(np.concatenate([*absent, *(ids.copy() for ids in found)]))] if absent else found

    def _deleted(self) -> Iterator[Ids]:
        ids = np.empty(self._batch, dtype=np.int64)
        while n := self._changes.next_deleted(ids.ctypes.data, self._batch):
            yield ids[:n]
