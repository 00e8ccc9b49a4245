"""Writes deltas: the rows that changed since a state of a store, streamed from a snapshot."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from damo_torchrec.checkpoints.array_file import ArrayWriter
from damo_torchrec.checkpoints.atomic_directory import build_directory, check_target
from damo_torchrec.checkpoints.delta import DeltaManifest, TableChanges
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.ladder import Ladder
from damo_torchrec.checkpoints.layout import array_files, header_file
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.checkpoints.manifest import new_id
from damo_torchrec.checkpoints.rank_identity import check_has_all_rows
from damo_torchrec.files import bytes_in, write_file
from damo_torchrec.progress import reporting
from damo_torchrec.store.changed_rows import NO_ROW_LIVES, ChangedRows, Differences, Ids, TableNow
from damo_torchrec.store.session import Session
from damo_torchrec.torch_at_use import torch

_log = logging.getLogger(__name__)
_WHAT = "delta"


@dataclass(frozen=True)
class Additions:
    """What a delta has besides the rows that changed.

    Args:
        files: contents, by name.
        states: ids of other states whose rows are those of one since which the delta is.
        abandoned: ids of states that the store has gone back behind, and that the delta leads back from.
        otherwise: rows that may be otherwise in these.
        after: the sequence number that its own is above.
        state: the id of the state that it leads to, of a part of a delta of several stores; empty for a new one.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    states: Sequence[str] = ()
    abandoned: Sequence[str] = ()
    otherwise: Differences = field(default_factory=Differences)
    after: int = 0
    state: str = ""


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
    catalog = session.catalog
    check_target(path, _WHAT)
    if not additions.state:
        check_has_all_rows(session.path, "a delta")
    if session.options.backend == "memory":
        raise ValueError(f'the store {session.path} with backend="memory" has no checkpoints for a delta to begin from')
    base = since if isinstance(since, StoreState) else catalog.lineage.find(since)
    tables = TableNow.all_of(session)
    iters = {table.name: table.iter for table in tables}
    changes: dict[str, TableChanges] = {}
    lives = [table.name for table in tables if table.ladder is not None]
    state = StoreState(additions.state or new_id(), max(iters.values(), default=0), iters, landmark=True, lives=lives)
    line = list(dict.fromkeys([*catalog.lineage.ids_from(base), *additions.states]))
    abandoned = [other for other in dict.fromkeys(additions.abandoned) if other not in line]

    def fill(staged: Path) -> None:
        with reporting(session.options.progress) as progress:
            for position, table in enumerate(tables):
                wanted = _own(session, additions.otherwise.ids.get(table.name))
                dead_there = _dead_there(table, base, additions.otherwise)
                rows = ChangedRows(table, base.iters.get(table.name, 0), wanted, dead_there)
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
            same_rows=catalog.lineage.unchanged_id(iters, lives) or "",
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


def _own(session: Session, ids: Ids | None) -> Ids | None:
    """Of ids those that have their rows here: all, unless other ranks' stores have some."""
    if ids is None or session.has_rows_of is None:
        return ids
    own: Ids = ids[session.has_rows_of(torch.from_numpy(ids)).numpy()]
    return own


def _dead_there(table: TableNow, base: StoreState, otherwise: Differences) -> Ladder | None:
    """Of the rows that have not changed since `base`, those that are dead by this may be missing where it is applied.

    That is where the ladder of another line of states was higher; and where no row died yet: what is served from there
    does not know when its rows were updated, and needs all of them.
    """
    if table.ladder is not None and table.name not in base.lives:
        return NO_ROW_LIVES
    there = otherwise.ladders.get(table.name, Ladder())
    return there if there.is_above(table.ladder or Ladder()) else None


def _write_table(directory: Path, now: TableNow, rows: ChangedRows) -> TableChanges:
    number, dim, ladder = now.table.number, now.table.definition.dim, now.ladder
    ids_file, weights_file, deleted_file = (directory / name for name in array_files(number))
    with ExitStack() as files:
        ids = files.enter_context(ArrayWriter(ids_file, np.int64))
        weights = files.enter_context(ArrayWriter(weights_file, np.float32, dim))
        deleted = files.enter_context(ArrayWriter(deleted_file, np.int64))
        if ladder is not None:
            headers = files.enter_context(ArrayWriter(directory / header_file(number), np.uint32, 2))
        for some in rows.changed():
            ids.append(some.ids)
            weights.append(some.weights)
            if ladder is not None:
                headers.append(some.headers)
        for gone in rows.deleted():
            deleted.append(gone)
    positions = [] if ladder is None else [*ladder.positions]
    mean = now.snapshot.mean(now.position) if now.table.definition.unseen_in_eval == "mean" else []
    return TableChanges(number, dim, ids.rows, deleted.rows, positions, mean)
