"""Writes a store's checkpoints: in the calling thread, or in one of its own while training goes on."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import MayReplace, build_directory, never
from damo_torchrec.checkpoints.known_digests import KnownDigests
from damo_torchrec.checkpoints.layout import LINEAGE_FILE, ORIGIN_FILE, ROWS, step_in
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.checkpoints.listing import free_name, read_directory
from damo_torchrec.checkpoints.manifest import LAST_FOLLOWED_SEQUENCE, Manifest
from damo_torchrec.checkpoints.origin import NOBODY, STORE, Origin
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.checkpoints.row_counts import with_possible_counts
from damo_torchrec.errors import DamoError
from damo_torchrec.files import bytes_in, write_file
from damo_torchrec.store.background import Job, Written
from damo_torchrec.store.catalog import Catalog

# Contents of files beside the rows, by name, for a manifest.
Files = Callable[[Manifest], Mapping[str, bytes]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointOptions:
    """What is said of a checkpoint that is to be made, besides where.

    Args:
        files: gives the contents of more files in it.
        link: whether to share unchanged files.
        keeper: who may remove it: one of origin.py's. A keeper's checkpoints are newer than all in their directory.
        may_replace: whether it takes the place of what is there.
    """

    files: Files | None = None
    link: bool = True
    keeper: str = NOBODY
    may_replace: MayReplace = never


@dataclass(frozen=True)
class NewCheckpoint:
    """What checkpoint to write, and the directory that it gets."""

    path: Path
    options: CheckpointOptions

    def other_name(self) -> Path:
        """The next free name of the same step. REQUIRES: a keeper has chosen the name."""
        return free_name(self.path.parent, step_in(self.path.name) or self.path.name)

    def build(self, fill: Callable[[Path], None]) -> Path:
        """Makes the directory that `fill` fills; returns it. It has another name if somebody took that of a keeper."""
        other_name = self.other_name if self.options.keeper else None
        return build_directory(self.path, "checkpoint", fill, other_name, self.options.may_replace)


class CheckpointWriter:
    """One checkpoint at a time. Not thread-safe: the store's mutex guards it.

    Args:
        path: the store's.
        catalog: of its tables.
        retention: which of the checkpoints that the store keeps stay when there is a new one.

    Attributes:
        digests: of files of rows that are known.
    """

    def __init__(self, path: Path, catalog: Catalog, retention: Retention) -> None:
        self._path = path
        self._catalog = catalog
        self._retention = retention
        self.digests = KnownDigests()
        self._job: Job | None = None
        self._last: Written | None = None

    def write(self, engine: _core.Store, new: NewCheckpoint) -> Path:
        """Makes the checkpoint; returns its directory. REQUIRES: none is being written."""
        made: list[Manifest] = []
        linked = False
        began = time.monotonic()
        self._catalog.let_deletions_go(engine)

        def fill(staged: Path) -> None:
            nonlocal linked
            states, linked = engine.checkpoint(str(staged / ROWS), new.options.link)
            manifest = self._catalog.new_manifest(self._next_sequence(new), states)
            contents = self._beside_rows(manifest, states, new)
            made.append(self._write_beside_rows(staged, manifest, contents))

        path = new.build(fill)
        self._catalog.manifest = made[0]
        self.digests.note(path, made[0].files)
        self._catalog.lineage.add(StoreState.of(made[0]))
        _log_checkpoint(path, made[0], linked, began)
        self._remove_outdated(new.options.keeper, path)
        return path

    def begin(
        self, engine: _core.Store, new: NewCheckpoint, failed: Callable[[], None] = lambda: None
    ) -> "Future[Path]":
        """As `write`, of everything as it is now, in a thread of its own, which calls `failed` if it fails.

        An error, or an interrupt, gives it up unless that thread has begun with it. Where there can be no more threads,
        as at the end of the interpreter, it is written here.
        """
        done = Written()
        made: list[Manifest] = []
        linked = False
        began = time.monotonic()
        taken = threading.Lock()  # by the thread that writes it, or by what gives it up before
        try:
            self._catalog.let_deletions_go(engine)
            states = engine.begin_checkpoint()
            manifest = self._catalog.new_manifest(self._next_sequence(new), states)
            contents = self._beside_rows(manifest, states, new)
            self._catalog.lineage.add(StoreState.of(manifest))

            def fill(staged: Path) -> None:
                nonlocal linked
                linked = engine.write_checkpoint(str(staged / ROWS), new.options.link)
                made.append(self._write_beside_rows(staged, manifest, contents))

            def write() -> None:
                if not taken.acquire(blocking=False):
                    return
                try:
                    try:
                        path = new.build(fill)
                        self._catalog.manifest = made[0]
                        self.digests.note(path, made[0].files)
                        _log_checkpoint(path, made[0], linked, began)
                    except BaseException:
                        failed()
                        engine.abandon_checkpoint()  # if it has not come to the rows
                        _log.exception("the checkpoint %s failed", new.path)
                        raise
                    self._remove_outdated(new.options.keeper, path)
                except BaseException as error:  # whatever it is: somebody waits for it
                    done.set_exception(error)
                else:
                    done.set_result(path)

            self._last = done
            self._job = Job()
            try:
                self._job.start(write)
            except RuntimeError as error:
                _log.info("the checkpoint %s is written at once: %s", new.path, error)
                self._job = None
                write()
            return done
        except BaseException:
            if taken.acquire(blocking=False):
                self._last = self._job = None
                engine.abandon_checkpoint()
            raise

    def _beside_rows(
        self, manifest: Manifest, states: Sequence[_core.TableState], new: NewCheckpoint
    ) -> Mapping[str, bytes]:
        return {
            **self._catalog.lives.files(states),
            LINEAGE_FILE: self._catalog.lineage.dump(manifest.id),
            ORIGIN_FILE: Origin(self._catalog.checkpoints.line or "", new.options.keeper).dump(),
            **(new.options.files(manifest) if new.options.files else {}),
        }

    def _write_beside_rows(self, staged: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> Manifest:
        """Completes the checkpoint `staged`, which has its rows; returns its manifest as it was written."""
        for name, content in contents.items():
            write_file(staged / name, content)
        written = with_possible_counts(manifest.with_files(staged, self.digests.entry_of), staged)
        written.write(staged)
        return written

    def _next_sequence(self, new: NewCheckpoint) -> int:
        """When it was made: the time, unless there are later ones, as where a clock was set back."""
        beside = [self._catalog.checkpoints.where, *([new.path.parent] if new.options.keeper else [])]
        others = [checkpoint.manifest.sequence for where in beside for checkpoint in read_directory(where)[0]]
        followed = [sequence for sequence in others if sequence < LAST_FOLLOWED_SEQUENCE]
        return max(time.time_ns() // 1000, 1 + max([self._catalog.manifest.sequence, *followed]))

    def _remove_outdated(self, keeper: str, path: Path) -> None:
        """Has those that the store keeps and that are outdated go, now that there is a new one at `path`."""
        if keeper != STORE:
            return
        try:
            self._retention.apply(self._catalog.checkpoints, STORE, just_written=path)
        except DamoError as error:  # the new one is there all the same
            _log.warning("an outdated checkpoint stays until the next is made: %s", error)

    def wait(self) -> None:
        """Waits until no checkpoint is being written. Whether one failed is for those who asked for it."""
        if self._last is not None:
            self._last.wait()
            self._last = None

    def check_elsewhere(self) -> None:
        """Raises DamoError if the calling thread is the one that writes a checkpoint, which then waited for itself."""
        if self._job is not None and self._job.is_here and not (self._last is None or self._last.done()):
            raise DamoError(
                f"the store {self._path} was called by the thread that writes a checkpoint of it, where garbage "
                "collection may come upon a finalizer: have that leave the call to another thread"
            )

    def close(self) -> None:
        """Waits, also for the end of the thread, unless that calls this: in what a future calls when it is done."""
        self.wait()
        if self._job is not None and not self._job.is_here:
            self._job.wait()
            self._job = None


def _log_checkpoint(target: Path, manifest: Manifest, linked: bool, began: float) -> None:
    _log.info(
        "made the checkpoint %s: step %d, %d tables, %d rows, %d bytes, %s, in %.1f s",
        target,
        manifest.step,
        len(manifest.tables),
        sum(table.rows for table in manifest.tables.values()),
        bytes_in(target),
        "whose files are shared by hard links" if linked else "copied",
        time.monotonic() - began,
    )
