"""Ids that had a row in an earlier checkpoint and have none now: what consumers of a table have to hear of.

Both are read in the order of ids, some at a time, side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.options import StoreOptions
from damo_torchrec.store import opening
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session

_BATCH_BYTES = 1 << 20
_MOST_STATE = 3  # floats for each weight, of any optimizer
_LARGE_ROW = 64 << 10  # bytes, what a row may have in the least memory budget

_Ids = npt.NDArray[np.int64]


def check_had_table(session: Session, name: str, since: str | int | os.PathLike[str]) -> Path:
    """The checkpoint that `since` names, which has a table of this name.

    Raises:
        TypeError, ValueError: there is none, or it has no such table.
        CorruptionError: it is damaged.
    """
    if isinstance(since, bool) or not isinstance(since, int | str | os.PathLike):
        raise TypeError(f"since must be a checkpoint's step, name or path, got {since!r}")
    _ = session.engine
    source = session.catalog.checkpoints.find(since)
    tables = Manifest.read(source).tables
    if name not in tables:
        raise ValueError(
            f"the checkpoint {source} has no table {name!r}, whose rows could have gone since, but {sorted(tables)}: "
            "was the table made since, or renamed?"
        )
    return source


def expired(session: Session, table: OpenTable, source: Path) -> Iterator[_Ids]:
    """Ids of rows of a checkpoint that are gone, ascending, some at a time, none of them empty.

    The rows of now are those of the moment at which this begins.
    """
    with session.waiting_call("read"):
        now = _scan(session, table)
    options = StoreOptions(num_threads=1, direct_io=session.options.direct_io)
    then = Session(source, options, _budget(session, source), read_only=True, temporary=False)
    opening.start(then, None, None)
    then.close_at_exit()
    with closing(then):
        earlier = _scan(then, then.stored_table(table.name))
        for ids in _without(earlier, now):
            _ = session.engine  # names the store if it is closed by now
            yield ids


def _budget(session: Session, source: Path) -> int:
    """The least, unless the checkpoint has rows that are too large for it: then that of the store."""
    widest = max(table.schema.dim for table in Manifest.read(source).tables.values())
    row_bytes = 4 * widest * (1 + _MOST_STATE) + 16
    return _core.LEAST_MEMORY_BUDGET if row_bytes <= _LARGE_ROW else session.memory_budget


def _scan(session: Session, table: OpenTable) -> Iterator[_Ids]:
    """The ids of all rows, ascending, as they are when this is called."""
    layout = table.layout
    scan = _core.Scan(session.engine, layout.index)
    n = max(_BATCH_BYTES // (4 * layout.dim), 1)

    def read() -> Iterator[_Ids]:
        weights = np.empty((n, layout.dim), np.float32)
        while True:
            ids = np.empty(n, np.int64)
            if (found := scan.next(ids.ctypes.data, weights.ctypes.data, n)) == 0:
                return
            yield ids[:found]

    return read()


def _without(some: Iterator[_Ids], others: Iterator[_Ids]) -> Iterator[_Ids]:
    """Those of `some` that are not among `others`. Both are ascending, and so is what comes of them."""
    other: _Ids | None = np.empty(0, np.int64)
    for ids in some:
        alone = np.ones(len(ids), dtype=bool)
        begin = 0
        while other is not None:
            end = int(ids.searchsorted(other[-1], side="right")) if len(other) else 0
            alone[begin:end] = np.isin(ids[begin:end], other, assume_unique=True, invert=True)
            begin = end
            if begin == len(ids):
                break
            other = next(others, None)
        if alone.any():
            yield ids[alone]
