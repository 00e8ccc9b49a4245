"""Rows that come from elsewhere, as a whole: into a table, or as a new one.

They go into a hidden table first, which finds what is wrong with any of them before anything changes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.table_entry import TableEntry, TableSchema
from damo_torchrec.optim.state_parts import state_parts
from damo_torchrec.store.agreement import check_most_rows
from damo_torchrec.store.open_table import Layout, OpenTable
from damo_torchrec.store.rows import Floats, Ids
from damo_torchrec.store.session import Session
from damo_torchrec.store.table_changes import check_name, hidden_table, reclaim, undone_unless_done
from damo_torchrec.store.table_definition import TableDefinition

_log = logging.getLogger(__name__)
_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class GivenRows:
    """Some rows.

    Args:
        ids: int64 ``(n,)``, in any order.
        weights: float32 ``(n, dim)``.
        state: of the optimizer, by the names of its parts: float32 ``(n, dim)``, or ``(n,)``. Others are as of new
            rows.
        headers: uint32 ``(n, 2)``: last steps and counts of updates; None for those of rows that are set now.
    """

    ids: Ids
    weights: Floats
    state: Mapping[str, Floats] = field(default_factory=dict)
    headers: npt.NDArray[np.uint32] | None = None

    def __getitem__(self, chosen: npt.NDArray[np.bool_]) -> GivenRows:
        """Those that are chosen."""
        headers = None if self.headers is None else self.headers[chosen]
        state = {name: values[chosen] for name, values in self.state.items()}
        return GivenRows(self.ids[chosen], self.weights[chosen], state, headers)


def import_table(session: Session, name: str, schema: TableSchema, iteration: int, rows: Iterable[GivenRows]) -> int:
    """Makes a table of rows, whole or not at all. Returns how many.

    Args:
        session: which.
        name: no table has it.
        schema: what the table is.
        iteration: updates that it has had.
        rows: all of them.

    Raises:
        TypeError, ValueError: there is a table of this name; a row is wrong, or its id comes twice; the store is
            read-only.
    """
    _check_writable(session)
    check_name(name)
    with session.alone("import a table into"):
        engine, catalog = session.engine, session.catalog
        session.waiting.check_none("import a table")
        session.wait_for_checkpoint()
        if name in catalog.names():
            raise ValueError(f"the store {session.path} has a table {name!r} already")
        with hidden_table(session, name, TableEntry(1, schema, iteration, 0)) as (number, index):
            _fill(session, _Hidden(name, index, schema, iteration), rows)
            count = engine.rows(index)
            session.note_change()
            with undone_unless_done(session):
                entry = TableEntry(number, schema, iteration, count)
                catalog.change_tables({**catalog.manifest.tables, name: entry}, f"table {name!r} was imported")
                catalog.take_over(name, entry, index)
    _log.info("imported table %r into the store %s, with %d rows", name, session.path, count)
    return count


def import_rows(session: Session, table: OpenTable, rows: Iterable[GivenRows]) -> int:
    """Sets rows of a table, once all of them were found right. Returns how many.

    Raises:
        ValueError: as `import_table`, or the table would have too many rows, or its rows live by rules and counts come.
    """
    _check_writable(session)
    name = table.name
    with session.alone("import rows into"):
        engine, layout = session.engine, table.layout
        session.wait_for_checkpoint()
        entry = replace(session.catalog.entry(name, engine), life=None, rows=0)
        with hidden_table(session, name, entry) as (number, index):
            hidden = _Hidden(name, index, entry.schema, entry.iter, table)
            _fill(session, hidden, rows)
            count = engine.rows(index)
            session.note_change()
            table.edited_after = session.catalog.manifest.sequence
            if hidden.counts:  # by which deltas tell what has changed
                session.catalog.lineage = Lineage(begun_by=f"rows of table {name!r} were imported with their counts")
            _copy(engine, index, layout, counts=hidden.counts)
            engine.drop_table(number)
    reclaim(session, number)
    _log.info("imported %d rows into table %r of the store %s", count, name, session.path)
    return count


def _check_writable(session: Session) -> None:
    if session.read_only:
        raise ValueError(f"the store {session.path} is read-only: nothing can be imported")


class _Hidden:
    """The hidden table that rows go into first.

    Args:
        name: of the table that they are to be of, for messages.
        index: in the engine.
        schema: of both.
        iteration: updates of both.
        target: the table that they are to be of, if there is one already.
    """

    def __init__(
        self, name: str, index: int, schema: TableSchema, iteration: int, target: OpenTable | None = None
    ) -> None:
        self.name = name
        self.index = index
        self.iteration = iteration
        self.dim = schema.dim
        self.target = target
        self.parts = state_parts(schema.optimizer)
        self.initial = TableDefinition.of_schema(name, schema).optimizer.initial_state()
        self.counts = False
        self.ascending = True
        self.largest: int | None = None  # of the ids that are there
        self.fresh = 0  # of them, those that the target has no row of

    def check(self, engine: _core.Store, rows: GivenRows) -> bool:
        """Whether all ids so far came ascending. Raises ValueError for what is wrong, also beside what came before."""
        self._check_ids(engine, rows.ids)
        for what, values in {"weight": rows.weights, **rows.state}.items():
            finite = np.isfinite(values.reshape(len(rows.ids), -1)).all(axis=1)
            if not finite.all():
                raise ValueError(f"table {self.name!r}: {what} of id {rows.ids[~finite][0]} is not finite")
        for part in self.parts:
            if not part.squares or part.name not in rows.state:
                continue
            wrong = (rows.state[part.name] < 0).reshape(len(rows.ids), -1).any(axis=1)
            if wrong.any():
                raise ValueError(
                    f"table {self.name!r}: {part.name} of id {rows.ids[wrong][0]} is negative, and made of squares"
                )
        if rows.headers is not None and (late := rows.headers[:, 0] > self.iteration).any():
            raise ValueError(
                f"table {self.name!r}: the last step of id {rows.ids[late][0]} is {rows.headers[late][0, 0]}, but the "
                f"table has had {self.iteration} updates: import without counts"
            )
        if rows.headers is not None and self.target is not None and self.target.life is not None:
            raise ValueError(
                f"table {self.name!r}: how long its rows live is counted by the table: import without counts"
            )
        return self.ascending

    def _check_ids(self, engine: _core.Store, ids: Ids) -> None:
        if len(ids) == 0:
            return
        ordered = np.sort(ids)
        above = self.largest is None or ordered[0] > self.largest
        self.ascending &= above and bool((ordered == ids).all())
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice) == 0 and not above:
            twice = ids[_contains(engine, self.index, ids)]
        if len(twice):
            raise ValueError(f"table {self.name!r}: id {twice[0]} comes more than once")
        self.largest = max(int(ordered[-1]), ordered[0] if self.largest is None else self.largest)
        if self.target is not None and self.target.life is not None and self.target.life.max_rows is not None:
            self.fresh += int((~_contains(engine, self.target.index, ids)).sum())
            most, rows = self.target.life.max_rows, engine.rows(self.target.index)
            if rows + self.fresh > most:
                raise ValueError(
                    f"table {self.name!r} has {rows} rows and may have {most} (max_rows): more were to be imported"
                )

    def add(self, engine: _core.Store, rows: GivenRows) -> None:
        """Adds rows past the cache. REQUIRES: all ids so far came ascending, so that nobody has asked for one yet."""
        headers, state = rows.headers, self.state(rows)
        if headers is None:  # as of rows that are set now
            headers = np.full((len(rows.ids), 2), (self.iteration, 0), np.uint32)
        arrays = (rows.ids, rows.weights, state, headers)
        ids, *others = (array.ctypes.data for array in arrays)
        engine.add_rows(self.index, ids, len(rows.ids), *others)

    def state(self, rows: GivenRows) -> Floats:
        """All state of rows, float32 ``(n, state_size)``."""
        n, column = len(rows.ids), 0
        state = np.full((n, sum(part.width(self.dim) for part in self.parts)), self.initial, np.float32)
        for part in self.parts:
            width = part.width(self.dim)
            if part.name in rows.state:
                state[:, column : column + width] = rows.state[part.name].reshape(n, width)
            column += width
        return state


def _fill(session: Session, hidden: _Hidden, rows: Iterable[GivenRows]) -> None:
    """Adds all rows, or raises ValueError: on all ranks, if there are several, which all call it."""
    agreement = session.agreement
    if agreement is None:
        _add_all(session, hidden, rows)
        return
    try:
        _add_all(session, hidden, rows)
    except Exception:
        agreement.total(1)
        raise
    if agreement.total(0):
        raise ValueError(f"table {hidden.name!r}: rows are wrong on another rank: nothing was imported")
    target = hidden.target
    if target is not None and target.life is not None and target.life.max_rows is not None:
        rows_here = session.engine.rows(target.index)
        check_most_rows(agreement, hidden.name, target.life.max_rows, rows_here, hidden.fresh)


def _add_all(session: Session, hidden: _Hidden, rows: Iterable[GivenRows]) -> None:
    engine = session.engine
    for given in rows:
        some = given if session.has_rows_of is None else given[_own(session, given.ids)]
        hidden.counts |= given.headers is not None
        if len(some.ids) == 0:  # another rank has them all
            continue
        ascending = hidden.check(engine, some)
        if ascending:
            hidden.add(engine, some)
        else:
            _set(engine, hidden.index, some.ids, some.weights, hidden.state(some), some.headers)


def _own(session: Session, ids: Ids) -> npt.NDArray[np.bool_]:
    """Which of the ids have their rows in this store."""
    import torch  # which ranks have

    assert session.has_rows_of is not None
    here: npt.NDArray[np.bool_] = session.has_rows_of(torch.from_numpy(ids)).numpy()
    return here


def _copy(engine: _core.Store, source: int, layout: Layout, *, counts: bool) -> None:
    """Sets the rows of one table of the engine in another."""
    n = max(_BATCH_BYTES // (4 * (layout.dim + layout.state_size) + 16), 1)
    ids, headers = np.empty(n, np.int64), np.empty((n, 2), np.uint32)
    weights, state = np.empty((n, layout.dim), np.float32), np.empty((n, layout.state_size), np.float32)
    scan = _core.Scan(engine, source)
    while found := scan.next_rows(ids.ctypes.data, weights.ctypes.data, state.ctypes.data, headers.ctypes.data, n):
        given = headers[:found] if counts else None
        _set(engine, layout.index, ids[:found], weights[:found], state[:found], given)


def _set(
    engine: _core.Store, index: int, ids: Ids, weights: Floats, state: Floats, headers: npt.NDArray[np.uint32] | None
) -> None:
    """Sets rows whole. The arrays are contiguous."""
    n = len(ids)
    if headers is None:
        engine.set(index, ids.ctypes.data, n, weights.ctypes.data, state.ctypes.data)
    else:
        engine.set_copies(index, ids.ctypes.data, n, weights.ctypes.data, headers.ctypes.data)
        engine.set_state(index, ids.ctypes.data, n, state.ctypes.data)


def _contains(engine: _core.Store, index: int, ids: Ids) -> npt.NDArray[np.bool_]:
    found = np.empty(len(ids), np.bool_)
    engine.contains(index, ids.ctypes.data, len(ids), found.ctypes.data)
    return found
