"""A checkpoint of all ranks, made by all of them: it appears at once, by rank 0's rename, when all is written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from damo_torchrec.checkpoints.atomic_directory import MayReplace, UnfinishedDirectory, never, remove_directory
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import DENSE_DIRECTORY, dense_file, rank_name, step_in
from damo_torchrec.checkpoints.listing import free_name
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.rows_copy import copy_file
from damo_torchrec.distributed.group import Ranks
from damo_torchrec.distributed.group_checkpoint import (
    NOBODY,
    RanksCheckpoint,
    RanksManifest,
    next_sequence,
    read_ranks_directory,
)
from damo_torchrec.errors import DamoError
from damo_torchrec.files import bytes_in, sync_directory

_log = logging.getLogger(__name__)

# What a rank does in the unfinished directory that it gets, and what that is, for messages.
Work = tuple[str, Callable[[Path], Any]]


@dataclass(frozen=True)
class NewCheckpoint:
    """What checkpoint of all ranks is to be made.

    Args:
        target: its directory: the same on all ranks.
        group: the id of the stores that belong together.
        run: of the opening of all of them.
        world_size: how many parts it gets.
        keeper: who may remove it: one of group_checkpoint.py's. They may give it the next free name.
        keep: how many of the keeper's stay, this one among them; None for all.
        may_replace: whether it takes the place of what is there.
        id: of the state of all ranks that it is; empty for that which the parts have in common, or else a new one.
    """

    target: Path
    group: str
    run: str
    world_size: int
    keeper: str = NOBODY
    keep: int | None = None
    may_replace: MayReplace = never
    id: str = ""

    def other_name(self) -> Path:
        """The next free name of the same step."""
        return free_name(self.target.parent, step_in(self.target.name) or self.target.name)


class Commit:
    """One checkpoint of all ranks under way: `begin`, then `finish`, in whatever thread. All ranks call both.

    Args:
        ranks: that make it.
        new: which.
    """

    def __init__(self, ranks: Ranks, new: NewCheckpoint) -> None:
        self._ranks = ranks
        self._new = new
        self._unfinished: UnfinishedDirectory | None = None  # rank 0's
        self._staged = Path()
        self._began = time.monotonic()

    def begin(self, start: Callable[[Path], None], given_up: Callable[[], None] = lambda: None) -> None:
        """Makes the directory that is to be filled, and has each rank start with it.

        Args:
            start: called with the directory. What it raises ends it on all ranks.
            given_up: called if it ended: waits for what `start` has started.
        """
        self._staged = Path(self._ranks.of_first(f"make {self._new.target}", self._make))
        try:
            self._ranks.together(f"begin the checkpoint {self._new.target}", lambda: self._start(start))
        except BaseException:
            self._give_up(given_up)
            raise

    def _make(self) -> str:
        other_name = self._new.other_name if self._new.keeper else None
        self._unfinished = UnfinishedDirectory(self._new.target, "checkpoint", other_name, self._new.may_replace)
        return str(self._unfinished.path)

    def _start(self, start: Callable[[Path], None]) -> None:
        if not self._staged.is_dir():
            raise DamoError(
                f"{self._new.target.parent} is no directory that all ranks see: rank 0 has made {self._staged}, which "
                "is not there"
            )
        start(self._staged)

    def finish(self, work: Work, then: Sequence[Work] = ()) -> Path:
        """Has each rank do its work, and completes the checkpoint. Returns its directory.

        Args:
            work: takes as long as it does, by a thread of its own, and says nothing to other ranks.
            then: what is done together afterwards, one after the other.

        Raises:
            OutOfSpaceError, DamoError: the disk of a rank is full or refuses, or a rank has ended. Nothing is left.
        """
        try:
            self._ranks.work(work[0], partial(work[1], self._staged))
            for what, call in then:
                self._ranks.each(what, partial(call, self._staged))
            return Path(self._ranks.of_first(f"complete the checkpoint {self._new.target}", self._complete))
        except BaseException:
            self._give_up()
            raise

    def _give_up(self, given_up: Callable[[], None] = lambda: None) -> None:
        what = f"give up the checkpoint {self._new.target}"
        try:
            given_up()
            self._ranks.exchange(None, what)  # nobody writes into it any more
            self._abandon()
            self._ranks.exchange(None, what)  # nothing is left of it
        except DamoError as error:
            _log.warning("%s", error)
        finally:
            self._abandon()

    def _abandon(self) -> None:
        if self._unfinished is not None:
            self._unfinished.abandon()

    def _complete(self) -> str:
        unfinished, new = self._unfinished, self._new
        assert unfinished is not None, "rank 0 has made the directory"
        staged = unfinished.path
        parts = [Manifest.read(staged / rank_name(rank, new.world_size)) for rank in range(new.world_size)]
        files = sorted(staged.glob(dense_file("*")))
        dense_ranks = len(files)
        if (staged / DENSE_DIRECTORY).is_dir():
            files += sorted(path for path in (staged / DENSE_DIRECTORY).iterdir() if path.is_file())
            sync_directory(staged / DENSE_DIRECTORY)
        manifest = RanksManifest(
            id=new.id or _state_of(parts),
            group=new.group,
            run=new.run,
            sequence=next_sequence(new.target.parent),
            step=max(part.step for part in parts),
            keeper=new.keeper,
            parts=[part.id for part in parts],
            dense_ranks=dense_ranks,
            files={str(path.relative_to(staged)): FileEntry.of(path) for path in files},
        )
        manifest.write(staged)
        RanksCheckpoint.read(staged)  # whatever would be wrong with it is found before it counts
        target = unfinished.finish()
        _log.info(
            "made the checkpoint %s of %d ranks: step %d, %d rows, %d bytes, in %.1f s",
            target,
            new.world_size,
            manifest.step,
            sum(table.rows for part in parts for table in part.tables.values()),
            bytes_in(target),
            time.monotonic() - self._began,
        )
        _remove_outdated(new, target)
        return str(target)


def _state_of(parts: Sequence[Manifest]) -> str:
    """The id of a state of all ranks: that which all stores know it by, or a new one."""
    ids = {part.id for part in parts}
    return ids.pop() if len(ids) == 1 else new_id()


def _remove_outdated(new: NewCheckpoint, just_written: Path) -> None:
    """Has those of the keeper go that do not stay: the newest, and the newest with a dense part."""
    if not new.keeper or new.keep is None:
        return
    listed, damaged = read_ranks_directory(just_written.parent)
    for path, error in damaged.items():
        _log.warning("leaving the damaged checkpoint %s alone: %s", path, error)
    own = [found for found in listed if (found[1].keeper, found[1].group) == (new.keeper, new.group)]
    trained = [path for path, manifest in own if manifest.dense_ranks > 0][-1:]
    for path, _ in own[: -new.keep]:
        if path in (*trained, just_written):
            continue
        try:
            remove_directory(path, "checkpoint")
            _log.info("removed the checkpoint %s: the newest %d of %s's stay", path, new.keep, new.keeper)
        except DamoError as error:  # the new one is there all the same
            _log.warning("an outdated checkpoint stays until the next is made: %s", error)


def link_file(source: Path, target: Path) -> None:
    """Makes `target` the same file by a hard link, or a copy where there can be none. Raises OSError."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another device, a file system without links, or one link too many
        copy_file(source, target)
