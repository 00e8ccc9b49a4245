"""Checkpoints of all ranks out of what their stores are: as they are now, as they were closed, or spread anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    DENSE_DIRECTORY,
    MANIFEST_FILE,
    ROWS,
    holds_rows,
    rank_name,
)
from damo_torchrec.checkpoints.listing import free_name
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.rows_copy import copy_file
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.distributed.commit import Commit, NewCheckpoint, Work, link_file
from damo_torchrec.distributed.dense import DensePart
from damo_torchrec.distributed.group import Ranks
from damo_torchrec.distributed.group_checkpoint import OPENING, RanksCheckpoint
from damo_torchrec.distributed.rank_directory import LocalCheckpoint, RankState
from damo_torchrec.distributed.respreading import Share, spread
from damo_torchrec.distributed.starting_point import closed_at
from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.files import sync_directory
from damo_torchrec.store.background import Job, Written
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)


def begin_checkpoint(
    ranks: Ranks, store: EmbeddingStore, new: NewCheckpoint, dense: Callable[[], DensePart] | None = None
) -> Written:
    """Makes a checkpoint of all ranks' stores as they are now, written by a thread of its own. All ranks call it.

    Args:
        ranks: that make it.
        store: this rank's.
        new: which.
        dense: takes the dense part, if there is one, as it is now.

    Raises:
        SchemaMismatchError: the ranks' tables differ, or the number of their updates.
        Exception: what else keeps it from being begun, on all ranks.
    """
    ranks.settle()
    what = f"begin the checkpoint {new.target}"
    _check_alike(ranks.together(what, lambda: (str(new.target), _tables_of(store))))
    new = replace(new, id=ranks.of_first(what, new_id))
    commit = Commit(ranks, new)
    parts: list[Future[Path]] = []
    taken: list[DensePart] = []

    def start(staged: Path) -> None:
        if dense is not None:
            taken.append(dense())
        part = staged / rank_name(ranks.rank, ranks.world_size)
        parts.append(store.session.checkpoint_async(part))
        note_state(store, new.id)

    def wait() -> None:
        for part in parts:
            part.exception()

    commit.begin(start, wait)
    rows: Work = ("write the rows", lambda _: parts[0].result())
    then: list[Work] = [("write the dense part", partial(part.write, ranks=ranks)) for part in taken]
    return _in_background(ranks, lambda: commit.finish(rows, then))


def note_state(store: EmbeddingStore, state: str) -> None:
    """Has a rank's store remember the state that it is in by the id that all ranks know: that of their checkpoint.

    Deltas of all ranks begin there. REQUIRES: nothing has changed since the store's last state.
    """
    with store.session.mutex:
        lineage = store.session.catalog.lineage
        unchanged, last = lineage.unchanged, lineage.last
        lineage.add(replace(last, id=state, landmark=True))
        lineage.add(last)  # by which the store goes on to know it
        if not unchanged:
            lineage.note_change()


def _in_background(ranks: Ranks, finish: Callable[[], Path]) -> Written:
    done = Written()

    def write() -> None:
        try:
            path = finish()
        except BaseException as error:  # whatever it is: somebody waits for it
            done.set_exception(error)
        else:
            done.set_result(path)

    ranks.begin(done)
    try:
        Job().start(write)
    except RuntimeError as error:
        _log.info("the checkpoint is written at once: %s", error)
        write()
    return done


def _tables_of(store: EmbeddingStore) -> dict[str, TableEntry]:
    """What the tables are, but for how many rows they have."""
    session = store.session
    with session.mutex:
        catalog = session.catalog
        entries = {name: catalog.entry(name, session.engine) for name in catalog.names()}
        return {name: replace(entry, rows=0) for name, entry in entries.items()}


def _check_alike(found: Sequence[tuple[str, dict[str, TableEntry]]]) -> None:
    """Raises if the ranks are not to save the same: the path, the tables and the number of their updates."""
    first, tables = found[0]
    for rank, (target, others) in enumerate(found):
        if target != first:
            raise ValueError(f"ranks ask for different checkpoints: rank 0 for {first}, rank {rank} for {target}")
        if others.keys() != tables.keys():
            raise SchemaMismatchError(
                f"rank 0 has the tables {sorted(tables)}, rank {rank} {sorted(others)}: each has to have all of them"
            )
        for name, entry in others.items():
            if entry.iter != tables[name].iter:
                raise SchemaMismatchError(
                    f"the ranks are at different steps: table {name!r} has had {tables[name].iter} updates on rank 0, "
                    f"{entry.iter} on rank {rank}"
                )
            if entry != tables[name]:
                raise SchemaMismatchError(
                    f"table {name!r} is another on rank {rank} than on rank 0: {entry}, expected {tables[name]}. "
                    "Tables have to be made in the same order on all ranks, with the same options"
                )


# ------------------------------------------------------------------ of stores that are not open


def checkpoint_closed(ranks: Ranks, root: Path, closed: Sequence[LocalCheckpoint], new: NewCheckpoint) -> Path:
    """A checkpoint of all ranks of those that their closed stores made, by rank. All ranks call it."""

    def copy(staged: Path) -> None:
        # A rank that is alone has all of them: where there are others now than these were.
        mine = range(new.world_size) if ranks.world_size != new.world_size else [ranks.rank]
        for rank in mine:
            name = rank_name(rank, new.world_size)
            _copy_checkpoint(root / name / CHECKPOINTS / closed[rank].name, staged / name)

    commit = Commit(ranks, new)
    commit.begin(lambda _: None)
    return commit.finish(("copy what the ranks' stores saved as they were closed", copy))


def closed_stores_of_others(root: Path, newest: RanksCheckpoint) -> RanksCheckpoint:
    """A checkpoint of all ranks of where stores of another number of ranks were closed, or `newest`.

    They have to be seen by this process, which makes it alone.

    Raises:
        StoreLockedError: one of them is open.
        SchemaMismatchError, CorruptionError, DamoError: as `RankState.read`, `closed_at` and `Commit`.
    """
    world_size = newest.world_size
    paths = [root / rank_name(rank, world_size) for rank in range(world_size)]
    if missing := [path.name for path in paths if not path.is_dir()]:
        _log.info("what stores saved as they were closed counts for nothing: %s are not to be seen", missing)
        return newest
    for path in paths:
        StoreDirectory(path).release()  # raises if somebody has it open
    states = [RankState.read(root, rank, world_size) for rank in range(world_size)]
    closed = closed_at(states, newest, root)
    if closed is None:
        return newest
    run = next(state.identity.run for state in states if state.identity is not None)
    step = max(closed[0].iters.values(), default=0)
    new = opening_checkpoint(root, newest.manifest.group, run, world_size, step)
    return RanksCheckpoint.read(checkpoint_closed(Ranks(None), root, closed, new))


def opening_checkpoint(root: Path, group: str, run: str, world_size: int, step: int) -> NewCheckpoint:
    """One that `open_store` makes and keeps, to go on from."""
    target = free_name(root / CHECKPOINTS, step)
    return NewCheckpoint(target, group, run, world_size, keeper=OPENING, keep=1)


def respread(ranks: Ranks, source: RanksCheckpoint, share: Share, new: NewCheckpoint) -> Path:
    """A checkpoint of all ranks with the rows of `source`, which is of another number of ranks. All ranks call it."""

    def spread_rows(staged: Path) -> None:
        spread(source, share, staged / rank_name(ranks.rank, ranks.world_size))

    def link_dense(staged: Path) -> None:
        if ranks.is_first and source.has_dense_part:
            source.check_dense_files()
            (staged / DENSE_DIRECTORY).mkdir()
            for name in source.manifest.files:
                link_file(source.path / name, staged / name)

    commit = Commit(ranks, new)
    commit.begin(lambda _: None)
    return commit.finish(("spread rows over the ranks", spread_rows), [("link the dense part", link_dense)])


def _copy_checkpoint(source: Path, target: Path) -> None:
    """Makes `target` a copy of a store's checkpoint, which shares files of rows by hard links where that can be."""
    manifest = Manifest.read(source)
    manifest.check_files(source, tables=False, logs=False)

    def fill(staged: Path) -> None:
        (staged / ROWS).mkdir()
        for name in (*manifest.files, MANIFEST_FILE):
            (link_file if holds_rows(name) else copy_file)(source / name, staged / name)
        sync_directory(staged / ROWS)

    build_directory(target, "checkpoint", fill)
