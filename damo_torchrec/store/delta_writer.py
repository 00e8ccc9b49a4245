"""Writes deltas: the rows that changed since a state of a store, streamed from a snapshot."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
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


def write_delta(
    session: Session, path: Path, since: StoreState | int | str | os.PathLike[str], files: Mapping[str, bytes]
) -> Path:
    """What `EmbeddingStore.export_delta` does, with more files, or since a state of the store's lineage.

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
    state = StoreState(new_id(), max(iters.values(), default=0), iters)

    def fill(staged: Path) -> None:
        with reporting(session.options.progress) as progress:
            for position, table in enumerate(tables):
                changes[table.name] = _write_table(staged, snapshot, position, table, base.iters.get(table.name, 0))
                progress(f"tables of {path}", position + 1, len(tables))
        for name, content in files.items():
            write_file(staged / name, content)
        manifest = DeltaManifest(
            id=state.id,
            base=base.id,
            line=catalog.lineage.ids_from(base),
            seed=catalog.manifest.seed,
            since_step=base.step,
            step=state.step,
            tables=changes,
            files={file.name: FileEntry.of(file) for file in sorted(staged.iterdir())},
        )
        manifest.write(staged)

    build_directory(path, _WHAT, fill)
    catalog.lineage.add(state)
    session.note_change()  # another session knows of the delta by the next checkpoint
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


def _write_table(
    directory: Path, snapshot: _core.RowSnapshot, position: int, table: OpenTable, since: int
) -> TableChanges:
    scan = _core.RowChanges(snapshot, position, since)
    batch = max(_BATCH_BYTES // (4 * table.definition.dim), 1)
    ids = np.empty(batch, dtype=np.int64)
    weights = np.empty((batch, table.definition.dim), dtype=np.float32)
    ids_file, weights_file, deleted_file = (directory / name for name in array_files(table.number))
    with _ArrayFile(ids_file, ids) as id_array, _ArrayFile(weights_file, weights) as weight_array:
        while n := scan.next_rows(ids.ctypes.data, weights.ctypes.data, batch):
            id_array.append(ids[:n])
            weight_array.append(weights[:n])
    with _ArrayFile(deleted_file, ids) as deleted_array:
        while n := scan.next_deleted(ids.ctypes.data, batch):
            deleted_array.append(ids[:n])
    return TableChanges(table.number, table.definition.dim, id_array.rows, deleted_array.rows)


class _ArrayFile:
    """A .npy file that grows. NumPy's header leaves room for any number of rows."""

    def __init__(self, path: Path, like: npt.NDArray[Any]) -> None:
        self._file = path.open("wb")
        self._like = like
        self.rows = 0
        self._write_header()

    def _write_header(self) -> None:
        header = np.lib.format.header_data_from_array_1_0(self._like)
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": (self.rows, *self._like.shape[1:])})

    def append(self, rows: npt.NDArray[Any]) -> None:
        self._file.write(rows.data)
        self.rows += len(rows)

    def __enter__(self) -> _ArrayFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                self._write_header()
