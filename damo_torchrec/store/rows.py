"""Rows of a table by NumPy arrays: all of them in the order of their ids, or some by their ids. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.store.open_table import Layout, OpenTable
from damo_torchrec.store.session import Session

_BATCH_BYTES = 1 << 20

Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Some rows.

    Args:
        ids: int64 ``(n,)``.
        weights: float32 ``(n, dim)``.
        state: float32 ``(n, state_size)``: the optimizer's, part after part.
        last_steps: int64 ``(n,)``: the table's `iter` at the last update, or when the row was set.
        counts: int64 ``(n,)``: updates since the row was made or set.
    """

    ids: Ids
    weights: Floats
    state: Floats
    last_steps: Ids
    counts: Ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp] | slice) -> Rows:
        """Those that are chosen."""
        return Rows(
            self.ids[chosen], self.weights[chosen], self.state[chosen], self.last_steps[chosen], self.counts[chosen]
        )


def scan_rows(session: Session, table: OpenTable, most: int | None = None) -> Iterator[Rows]:
    """All rows of a table, ascending by id, some at a time, as they are when this is called.

    Args:
        session: which.
        table: of it.
        most: rows at a time; None for what a megabyte holds.
    """
    with session.waiting_call("read"):
        engine, layout = session.engine, table.layout
        scan = _core.Scan(engine, layout.index)
        n = most or max(_BATCH_BYTES // row_bytes(layout), 1)
        n = min(n, max(engine.rows(layout.index), 1))  # no more memory than there are rows

    def read() -> Iterator[Rows]:
        while True:
            _ = session.engine  # names the store if it is closed by now
            rows, headers = _empty(layout, n)
            found = scan.next_rows(_at(rows.ids), _at(rows.weights), _at(rows.state), _at(headers), n)
            if found == 0:
                return
            yield _with_headers(rows, headers)[:found]

    return read()


def rows_of(session: Session, table: OpenTable, ids: Ids) -> tuple[Rows, npt.NDArray[np.bool_]]:
    """Rows by their ids, and whether there are such rows: of ids without one, zeros and the state of a new row."""
    with session.waiting_call("read"):
        engine, layout = session.engine, table.layout
        rows, headers = _empty(layout, len(ids))
        exists = np.empty(len(ids), np.bool_)
        rows.ids[:] = ids
        engine.get(layout.index, _at(rows.ids), len(ids), _core.UnseenRows.ZEROS, _at(rows.weights))
        engine.describe(layout.index, _at(rows.ids), len(ids), _at(rows.state), _at(headers), _at(exists))
    return _with_headers(rows, headers), exists


def delete_rows(session: Session, table: OpenTable, ids: Ids) -> None:
    """What `Table.delete` does. Raises ValueError if the store is read-only."""
    ids = np.ascontiguousarray(ids)
    with session.changing(table) as engine:
        engine.delete(table.index, _at(ids), len(ids))


def row_bytes(layout: Layout) -> int:
    """What a row takes in these arrays."""
    return 4 * (layout.dim + layout.state_size) + 32


def _empty(layout: Layout, n: int) -> tuple[Rows, npt.NDArray[np.uint32]]:
    none = np.empty(0, np.int64)
    weights, state = np.empty((n, layout.dim), np.float32), np.empty((n, layout.state_size), np.float32)
    return Rows(np.empty(n, np.int64), weights, state, none, none), np.empty((n, 2), np.uint32)


def _with_headers(rows: Rows, headers: npt.NDArray[np.uint32]) -> Rows:
    last_steps, counts = headers.astype(np.int64).T
    return Rows(rows.ids, rows.weights, rows.state, last_steps, counts)


def _at(array: npt.NDArray[np.generic]) -> int:
    return array.ctypes.data
