"""Several deltas, each of which goes on from the one before, made one."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.checkpoints.array_file import ArrayWriter
from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.checkpoints.delta import Delta, DeltaManifest, DeltaTable, TableChanges
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.ladder import Headers
from damo_torchrec.checkpoints.layout import array_files, header_file
from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.files import write_file

_log = logging.getLogger(__name__)
_WORKING_BYTES = 1 << 24
_Ids = npt.NDArray[np.int64]


def fold_deltas(paths: Sequence[Path], target: Path) -> Path:
    """Makes one delta of several; returns it. It leads to the state of the last, from wherever any of them leads from.

    Arrays are merged some rows at a time. Ladders, and other files than those of rows, are those of the last delta;
    rows that are dead by these ladders are among the deleted ones.

    Args:
        paths: of the deltas, at least one, in their order.
        target: a new directory.

    Raises:
        ValueError: one does not go on from the one before, or is none, or the last lacks a file that another has.
        SchemaMismatchError: a table is not the same in all of them.
        CorruptionError: one is damaged.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    deltas = [Delta.read(path) for path in paths]
    last = deltas[-1]
    manifest = _manifest(deltas)
    if lost := {name for delta in deltas for name in delta.files} - {*last.files}:
        raise ValueError(f"{last.path} lacks {sorted(lost)}, which deltas before it have")

    def fill(staged: Path) -> None:
        tables = {name: _fold_table(staged, name, deltas) for name in last.tables}
        for name in last.files:
            write_file(staged / name, last.read_file(name))
        files = {file.name: FileEntry.of(file) for file in sorted(staged.iterdir())}
        replace(manifest, tables=tables, files=files).write(staged)

    build_directory(target, "delta", fill)
    _log.info("folded %d deltas, of steps %d to %d, into %s", len(deltas), manifest.since_step, last.step, target)
    return target


def join_deltas(paths: Sequence[Path], target: Path, means: Mapping[str, list[float]]) -> Path:
    """Makes one delta of those of several stores, which have rows of different ids; returns it.

    It has the rows, and deletions, of all, and other files than those of rows of the first. It leads from the states
    that all of them know by the same id.

    Args:
        paths: of the deltas, at least one.
        target: a new directory.
        means: by table, the mean of all stores' rows, where ids without a row read that.

    Raises:
        ValueError: they lead from or to different states, or one is none.
        SchemaMismatchError: a table is not the same in all of them.
        CorruptionError: one is damaged.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    deltas = [Delta.read(path) for path in paths]
    first = deltas[0].manifest
    for delta in deltas:
        if _ends(delta.manifest) != _ends(first):
            raise ValueError(f"{delta.path} leads elsewhere than {paths[0]}: {_ends(delta.manifest)}, {_ends(first)}")
    everywhere = set(first.line).intersection(*(delta.line for delta in deltas))
    abandoned = [state for state in first.abandoned_states() if state in everywhere]
    manifest = replace(
        first,
        line=[*(state for state in first.past() if state in everywhere), *abandoned],
        abandoned=len(abandoned),
        sequence=max(delta.manifest.sequence for delta in deltas),
        same_rows=first.same_rows if all(d.manifest.same_rows == first.same_rows for d in deltas) else "",
    )

    def fill(staged: Path) -> None:
        tables = {
            name: replace(_fold_table(staged, name, deltas), mean=means.get(name, [])) for name in deltas[0].tables
        }
        for name in deltas[0].files:
            write_file(staged / name, deltas[0].read_file(name))
        files = {file.name: FileEntry.of(file) for file in sorted(staged.iterdir())}
        replace(manifest, tables=tables, files=files).write(staged)

    return build_directory(target, "delta", fill)


def _ends(manifest: DeltaManifest) -> tuple[object, ...]:
    """What has to be alike of deltas that lead between the same states."""
    ladders = {name: table.ladder for name, table in manifest.tables.items()}
    return manifest.id, manifest.base, manifest.seed, manifest.since_step, manifest.step, ladders


def _manifest(deltas: Sequence[Delta]) -> DeltaManifest:
    """That of the whole, but for tables and files."""
    first, last = deltas[0], deltas[-1]
    past, abandoned = list(first.manifest.past()), list(first.manifest.abandoned_states())
    for before, delta in pairwise(deltas):
        if before.id not in delta.line or before.manifest.seed != delta.manifest.seed:
            raise ValueError(f"{delta.path} does not go on from {before.path}")
        past += [before.id, *delta.manifest.past()]
        abandoned += delta.manifest.abandoned_states()
    past = [state for state in dict.fromkeys(past) if state != last.id]
    abandoned = [state for state in dict.fromkeys(abandoned) if state not in {*past, last.id}]
    return replace(
        last.manifest,
        base=first.base,
        line=[*past, *abandoned],
        since_step=min(first.since_step, last.step),
        abandoned=len(abandoned),
    )


def _fold_table(directory: Path, name: str, deltas: Sequence[Delta]) -> TableChanges:
    table = deltas[-1].manifest.tables[name]
    for delta in deltas:
        other = delta.manifest.tables.get(name, table)
        if (other.number, other.dim) != (table.number, table.dim):
            raise SchemaMismatchError(f"table {name!r} is another one in {delta.path} than in {deltas[-1].path}")
    ladder = deltas[-1].tables[name].ladder
    found = [delta.tables[name] for delta in deltas if name in delta.tables]
    parts = [replace(part, headers=_headers(part) if ladder else None, ladder=ladder) for part in found]
    ids_file, weights_file, deleted_file = (directory / file for file in array_files(table.number))
    with ExitStack() as files:
        ids = files.enter_context(ArrayWriter(ids_file, np.int64))
        weights = files.enter_context(ArrayWriter(weights_file, np.float32, table.dim))
        deleted = files.enter_context(ArrayWriter(deleted_file, np.int64))
        if ladder:
            headers = files.enter_context(ArrayWriter(directory / header_file(table.number), np.uint32, 2))
        for some in _cut(parts, max(_WORKING_BYTES // (4 * table.dim) // len(parts), 1)):
            rows = _fold_rows(some)
            ids.append(np.ascontiguousarray(rows.ids))
            weights.append(np.ascontiguousarray(rows.weights))
            deleted.append(np.ascontiguousarray(rows.deleted))
            if rows.headers is not None:
                headers.append(np.ascontiguousarray(rows.headers))
    return replace(table, changed=ids.rows, deleted=deleted.rows)


def _headers(part: DeltaTable) -> Headers:
    """Those of its rows; of the time before rows died, the oldest there can be, as the next delta has all that live."""
    return np.zeros((len(part.ids), 2), np.uint32) if part.headers is None else part.headers


def _cut(parts: Sequence[DeltaTable], size: int) -> Iterator[list[DeltaTable]]:
    """The parts, by ascending ranges of ids in which no array of theirs has more than `size`."""
    arrays = [array for part in parts for array in (part.ids, part.deleted)]
    ends = np.unique(np.concatenate([array[size - 1 :: size] for array in arrays] + [array[-1:] for array in arrays]))
    begins = [(0, 0)] * len(parts)
    for end in ends:
        some = []
        for n, part in enumerate(parts):
            (a, b), (c, d) = begins[n], (_end(part.ids, end), _end(part.deleted, end))
            headers = None if part.headers is None else part.headers[a:c]
            some.append(DeltaTable(part.ids[a:c], part.weights[a:c], part.deleted[b:d], headers, part.ladder))
            begins[n] = c, d
        yield some


def _end(ascending: npt.NDArray[Any], last: np.int64) -> int:
    return int(ascending.searchsorted(last, side="right"))


def _fold_rows(parts: Sequence[DeltaTable]) -> DeltaTable:
    """What the changes come to, one after the other."""
    whole = parts[0]
    for part in parts[1:]:
        stay = ~_among(whole.ids, part.ids) & ~_among(whole.ids, part.deleted)
        ids = np.concatenate([whole.ids[stay], part.ids])
        order = ids.argsort()
        weights = np.concatenate([whole.weights[stay], part.weights])[order]
        headers = None
        if whole.headers is not None and part.headers is not None:
            headers = np.concatenate([whole.headers[stay], part.headers])[order]
        deleted = np.union1d(whole.deleted[~_among(whole.deleted, part.ids)], part.deleted)
        whole = DeltaTable(ids[order], weights, deleted, headers, whole.ladder)
    return _without_dead(whole)


def _without_dead(rows: DeltaTable) -> DeltaTable:
    """The same with rows that died later deleted: whoever has an older one may not know that it is dead."""
    if rows.headers is None or rows.ladder is None:
        return rows
    dead = rows.ladder.dead(rows.headers, rows.ids)
    deleted = np.union1d(rows.deleted, rows.ids[dead])
    return replace(rows, ids=rows.ids[~dead], weights=rows.weights[~dead], deleted=deleted, headers=rows.headers[~dead])


def _among(ids: _Ids, others: _Ids) -> npt.NDArray[np.bool_]:
    """Which of the ids are among others, ascending."""
    if not len(others):
        return np.zeros(len(ids), dtype=bool)
    places = np.minimum(others.searchsorted(ids), len(others) - 1)
    return np.asarray(others[places] == ids)
