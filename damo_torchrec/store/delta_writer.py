"""Writes deltas: the rows that changed since a state of a store, streamed from a snapshot."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.checkpoints.array_file import ArrayWriter
from damo_torchrec.checkpoints.atomic_directory import build_directory, check_target
from damo_torchrec.checkpoints.delta import DeltaManifest, TableChanges
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import array_files
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.checkpoints.manifest import new_id
from damo_torchrec.files import bytes_in, write_file
from damo_torchrec.progress import reporting
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.session import Session

_log = logging.getLogger(__name__)
_WHAT = "delta"
_BATCH_BYTES = 1 << 20


_Ids = npt.NDArray[np.int64]
_Weights = npt.NDArray[np.float32]
RowIds = Mapping[str, _Ids]  # ascending, by table


@dataclass(frozen=True)
class Additions:
    """What a delta has besides the rows that changed.

    Args:
        files: contents, by name.
        states: ids of other states whose rows are those of one since which the delta is.
        abandoned: ids of states that the store has gone back behind, and that the delta leads back from.
        rows: ids of rows that may be otherwise in these, ascending, by table.
        after: the sequence number that its own is above.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    states: Sequence[str] = ()
    abandoned: Sequence[str] = ()
    rows: RowIds = field(default_factory=dict)
    after: int = 0


def write_delta(
    session: Session,
    path: Path,
    since: StoreState | int | str | os.PathLike[str],
    additions: Additions = Additions(),
) -> Path:
    """What `EmbeddingStore.export_delta` does, with additions, or since a state of the store's lineage.

    REQUIRES: the session's mutex.
    """
    began = time.monotonic()
    engine, catalog = session.engine, session.catalog
    check_target(path, _WHAT)
    if session.options.backend == "memory":
        raise ValueError(f'the store {session.path} with backend="memory" has no checkpoints for a delta to begin from')
    base = since if isinstance(since, StoreState) else catalog.lineage.find(since)
    tables = [catalog.open_stored(name, engine) for name in catalog.names()]
    snapshot = _core.RowSnapshot(engine, [table.index for table in tables])
    iters = {table.name: state.iter for table, state in zip(tables, snapshot.states, strict=True)}
    changes: dict[str, TableChanges] = {}
    state = StoreState(new_id(), max(iters.values(), default=0), iters, landmark=True)
    line = list(dict.fromkeys([*catalog.lineage.ids_from(base), *additions.states]))
    abandoned = [other for other in dict.fromkeys(additions.abandoned) if other not in line]

    def fill(staged: Path) -> None:
        with reporting(session.options.progress) as progress:
            for position, table in enumerate(tables):
                scan = _core.RowChanges(snapshot, position, base.iters.get(table.name, 0))
                rows = _Rows(engine, table, scan, additions.rows.get(table.name))
                changes[table.name] = _write_table(staged, table, rows)
                progress(f"tables of {path}", position + 1, len(tables))
        for name, content in additions.files.items():
            write_file(staged / name, content)
        manifest = DeltaManifest(
            id=state.id,
            base=base.id,
            line=[*line, *abandoned],
            seed=catalog.manifest.seed,
            since_step=base.step,
            step=state.step,
            tables=changes,
            files={file.name: FileEntry.of(file) for file in sorted(staged.iterdir())},
            sequence=max(time.time_ns() // 1000, additions.after + 1),
            same_rows=catalog.lineage.unchanged_id(iters) or "",
            abandoned=len(abandoned),
        )
        manifest.write(staged)

    build_directory(path, _WHAT, fill)
    catalog.lineage.add(state)
    session.changed = True  # another session knows of the delta by the next checkpoint
    _log.info(
        "wrote the delta %s: steps %d to %d, %d changed and %d deleted rows, %d bytes, in %.1f s",
        path,
        base.step,
        state.step,
        sum(table.changed for table in changes.values()),
        sum(table.deleted for table in changes.values()),
        bytes_in(path),
        time.monotonic() - began,
    )
    return path


def changed_rows(session: Session, since: StoreState) -> RowIds:
    """Those of the rows that changed, came or went since a state in the store's past."""
    engine, catalog = session.engine, session.catalog
    tables = [catalog.open_stored(name, engine) for name in catalog.names()]
    snapshot = _core.RowSnapshot(engine, [table.index for table in tables])
    found = {}
    for position, table in enumerate(tables):
        rows = _Rows(engine, table, _core.RowChanges(snapshot, position, since.iters.get(table.name, 0)))
        changed = [ids.copy() for ids, _ in rows.changed()]
        deleted = [ids.copy() for ids in rows.deleted()]
        found[table.name] = np.unique(np.concatenate([np.empty(0, np.int64), *changed, *deleted]))
    return found


def united(one: RowIds, other: RowIds) -> RowIds:
    """Those that are in either."""
    none = np.empty(0, np.int64)
    return {name: np.union1d(one.get(name, none), other.get(name, none)) for name in {*one, *other}}


def _write_table(directory: Path, table: OpenTable, rows: _Rows) -> TableChanges:
    ids_file, weights_file, deleted_file = (directory / name for name in array_files(table.number))
    dim = table.definition.dim
    with ArrayWriter(ids_file, np.int64) as id_array, ArrayWriter(weights_file, np.float32, dim) as weight_array:
        for ids, weights in rows.changed():
            id_array.append(ids)
            weight_array.append(weights)
    with ArrayWriter(deleted_file, np.int64) as deleted_array:
        for ids in rows.deleted():
            deleted_array.append(ids)
    return TableChanges(table.number, dim, id_array.rows, deleted_array.rows)


class _Rows:
    """What of a table is in a delta: what a scan finds, and rows that are asked for.

    Args:
        engine: which has the rows as the scan has them.
        table: whose rows they are.
        scan: for what changed.
        wanted: int64, ascending: ids whose rows are in it as well, or are deleted, where there are none.
    """

    def __init__(
        self, engine: _core.Store, table: OpenTable, scan: _core.RowChanges, wanted: _Ids | None = None
    ) -> None:
        self._engine = engine
        self._table = table
        self._scan = scan
        self._wanted = np.empty(0, np.int64) if wanted is None else wanted
        self._absent: list[_Ids] = []
        self._batch = max(_BATCH_BYTES // (4 * table.definition.dim), 1)

    def changed(self) -> Iterator[tuple[_Ids, _Weights]]:
        """Ids, ascending, and weights of rows that are there, some at a time. What it yields is overwritten."""
        ids = np.empty(self._batch, dtype=np.int64)
        weights = np.empty((self._batch, self._table.definition.dim), dtype=np.float32)
        begin = 0
        while n := self._scan.next_rows(ids.ctypes.data, weights.ctypes.data, 0, self._batch):
            end = begin + int(self._wanted[begin:].searchsorted(ids[n - 1], side="right"))
            yield from self._merge(ids[:n], weights[:n], self._wanted[begin:end])
            begin = end
        yield from self._merge(ids[:0], weights[:0], self._wanted[begin:])

    def _merge(self, ids: _Ids, weights: _Weights, wanted: _Ids) -> Iterator[tuple[_Ids, _Weights]]:
        """Rows that the scan has found, with those that are wanted of the ids up to there."""
        begin = 0
        for first in range(0, len(wanted), self._batch):
            some = wanted[first : first + self._batch]
            end = int(ids.searchsorted(some[-1], side="right"))
            more = np.setdiff1d(some, ids[begin:end], assume_unique=True)
            there = np.empty(len(more), dtype=bool)
            self._engine.contains(self._table.index, more.ctypes.data, len(more), there.ctypes.data)
            self._absent.append(more[~there])
            more = more[there]
            read = np.empty((len(more), weights.shape[1]), dtype=np.float32)
            unseen = _core.UnseenRows.ZEROS
            self._engine.get(self._table.index, more.ctypes.data, len(more), unseen, read.ctypes.data)
            together = np.concatenate([ids[begin:end], more])
            order = together.argsort()
            yield together[order], np.concatenate([weights[begin:end], read])[order]
            begin = end
        if begin < len(ids):
            yield ids[begin:], weights[begin:]

    def deleted(self) -> Iterator[_Ids]:
        """Ids of rows that are not there, ascending, some at a time. REQUIRES: `changed` has come to its end."""
        absent = [ids for ids in self._absent if len(ids)]
        found = self._deleted()
        yield from [np.unique(np.concatenate([*absent, *(ids.copy() for ids in found)]))] if absent else found

    def _deleted(self) -> Iterator[_Ids]:
        ids = np.empty(self._batch, dtype=np.int64)
        while n := self._scan.next_deleted(ids.ctypes.data, self._batch):
            yield ids[:n]
