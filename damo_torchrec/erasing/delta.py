"""Deltas without some of their rows, in the place of those that had them: they say that the rows are gone instead."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from damo_torchrec.checkpoints.array_file import ArrayWriter
from damo_torchrec.checkpoints.atomic_directory import build_directory, clear_unfinished
from damo_torchrec.checkpoints.delta import Delta, DeltaTable, TableChanges
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import DELTA_FILE, array_files, header_file, unfinished_entries
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.rows_copy import copy_file
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Ids, Wanted
from damo_torchrec.errors import CorruptionError, DamoError

_WHAT = "delta"
_BATCH_BYTES = 1 << 20


def is_delta(path: Path) -> bool:
    """Whether `path` looks like a delta."""
    return is_directory(path) and os.path.lexists(path / DELTA_FILE)


def erase_from_deltas(directory: Path, wanted_of: Callable[[Path], Wanted], report: ForgetReport) -> None:
    """`erase_from_delta` for all deltas in a directory, those that are hidden from servers too."""
    if not report.dry_run:
        clear_unfinished(directory)
        for unfinished in sorted(unfinished_entries(directory)):
            report.leave(unfinished, "unfinished delta", "it may hold them, and is in use or not ours to remove")
    for path in sorted(path for path in directory.iterdir() if is_delta(path)):
        erase_from_delta(path, wanted_of(path), report)


def erase_from_delta(path: Path, wanted: Wanted, report: ForgetReport) -> None:
    """Has nothing left of the wanted rows in a delta, and says so in the report, or why that cannot be.

    It leads from and to the same states as before. Who applies it deletes the rows. Interrupted, it leaves the delta as
    it was or as it is to be, and what `clear_unfinished` removes.
    """
    try:
        delta = Delta.read(path)
        found = _found(delta, wanted)
        if not found:
            return
        rows = sum(map(len, found.values()))
        if not report.dry_run:
            names = [array_files(delta.manifest.tables[name].number)[1] for name in found]
            files = {(file := path / name): os.lstat(file) for name in names}
            build_directory(path, _WHAT, _filler(delta, found), may_replace=is_directory)
            report.note_removed(files)
        report.erased.append(Erased(path, _WHAT, "rewritten", rows))
    except CorruptionError as error:
        report.leave(path, _WHAT, f"it is damaged, and may hold them: {error}. Remove it")
    except (DamoError, OSError) as error:
        report.leave(path, _WHAT, f"it holds them, or may: {error}")


def _found(delta: Delta, wanted: Wanted) -> dict[str, Ids]:
    found = {}
    for name, table in delta.tables.items():
        asked = wanted.of_table(name, delta.manifest.tables[name].number)
        if len(asked) and len(table.ids):
            places = np.minimum(table.ids.searchsorted(asked), len(table.ids) - 1)
            if len(there := asked[table.ids[places] == asked]):
                found[name] = there
    return found


def _filler(delta: Delta, found: dict[str, Ids]) -> Callable[[Path], None]:
    """What fills a new directory with the delta but for the rows that were found, which are deleted in it."""

    def fill(staged: Path) -> None:
        tables = dict(delta.manifest.tables)
        written = set()
        for name, gone in found.items():
            tables[name] = _write_table(staged, tables[name], delta.tables[name], gone)
            written |= {*tables[name].files()}
        for name in delta.manifest.files.keys() - written:
            copy_file(delta.path / name, staged / name)
        files = {name: FileEntry.of(staged / name) for name in delta.manifest.files}
        replace(delta.manifest, tables=tables, files=files).write(staged)

    return fill


def _write_table(directory: Path, changes: TableChanges, rows: DeltaTable, gone: Ids) -> TableChanges:
    ids_file, weights_file, deleted_file = (directory / name for name in array_files(changes.number))
    with ExitStack() as files:
        ids = files.enter_context(ArrayWriter(ids_file, np.int64))
        weights = files.enter_context(ArrayWriter(weights_file, np.float32, changes.dim))
        deleted = files.enter_context(ArrayWriter(deleted_file, np.int64))
        if rows.headers is not None:
            headers = files.enter_context(ArrayWriter(directory / header_file(changes.number), np.uint32, 2))
        for part in _parts(len(rows.ids), max(_BATCH_BYTES // (4 * changes.dim), 1)):
            kept = np.isin(rows.ids[part], gone, assume_unique=True, invert=True)
            ids.append(np.ascontiguousarray(rows.ids[part][kept]))
            weights.append(np.ascontiguousarray(rows.weights[part][kept]))
            if rows.headers is not None:
                headers.append(np.ascontiguousarray(rows.headers[part][kept]))
        deleted.append(np.union1d(rows.deleted, gone))
    return replace(changes, changed=ids.rows, deleted=deleted.rows)


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, n)) for first in range(0, n, size))
