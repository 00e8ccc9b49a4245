"""Rows of a checkpoint in a store of their own, into which deltas are written: the checkpoint stays as it is."""

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from damo_torchrec import _core
from damo_torchrec.checkpoints.in_use import holders, lock
from damo_torchrec.checkpoints.ladder import Ladder
from damo_torchrec.checkpoints.layout import CHECKPOINTS
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.checkpoints.temporary_directory import is_temporary, mark_temporary
from damo_torchrec.errors import DamoError
from damo_torchrec.files import make_temporary_directory, on_tmpfs, os_errors
from damo_torchrec.lookup_plan import LookupOutput
from damo_torchrec.options import StoreOptions
from damo_torchrec.serving.arrays import Array
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.table_definition import TableDefinition

_log = logging.getLogger(__name__)

# How long the others that make a working copy, or whoever else may read the checkpoint, can hold one back.
_PATIENCE = 10.0  # seconds


def open_working_copy(checkpoint: Path, memory_budget: int | str, num_threads: int | None) -> EmbeddingStore:
    """A temporary store with the rows of a checkpoint, without tables. It is removed when it is closed.

    It is beside the checkpoint, whose files it links, or if nothing can be written there among other temporary files.

    Raises:
        CorruptionError: the checkpoint is damaged.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    options = StoreOptions(num_threads=num_threads)
    with _claimed(checkpoint):
        directory = _make_directory(checkpoint)
        try:
            _mark(directory)
            store = EmbeddingStore(directory, memory_budget=memory_budget, restore=checkpoint, options=options)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    store.session.temporary = True
    return store


def open_tables(store: EmbeddingStore, manifest: Manifest, outputs: Iterable[LookupOutput]) -> None:
    """Opens the tables that outputs are of, as the checkpoint's manifest describes them.

    Raises:
        ValueError: this version does not know an initializer.
    """
    unseen = {output.table: output.unseen for output in outputs}
    definitions = [TableDefinition.of_schema(name, manifest.tables[name].schema, how) for name, how in unseen.items()]
    store.session.open_tables(definitions)


def means_of(store: EmbeddingStore, outputs: Iterable[LookupOutput]) -> dict[str, list[float]]:
    """Means of the rows of tables, by name, where outputs read them. REQUIRES: the tables are open."""
    tables = {output.table for output in outputs if output.unseen == "mean"}
    return {name: store.table(name).mean_weights() for name in sorted(tables)}


class CopiedTable:
    """A table of a working copy, into which another store's changes are written.

    Its rows die by the ladder that it is given, whatever made them die in the store that they are from.

    Args:
        store: a working copy with its tables open.
        name: of the table.

    Attributes:
        ladder: by which rows are dead.
    """

    def __init__(self, store: EmbeddingStore, name: str) -> None:
        self._engine = store.session.engine
        self._index = store.table(name).opened.index
        stored = _core.RowSnapshot(self._engine, [self._index]).ladder(0)
        self.ladder = Ladder() if stored is None else Ladder(tuple(stored.positions))
        if stored is not None:
            self.follow(self.ladder)

    def follow(self, ladder: Ladder) -> None:
        """Has rows be dead by `ladder` from now on, and by no other."""
        self._engine.follow(self._index, list(ladder.positions))
        self.ladder = ladder

    def stored(self, ids: Array) -> tuple[Array, Array]:
        """Whether ids, int64 ``(n,)``, have rows, bool ``(n,)``, and their headers, uint32 ``(n, 2)``."""
        ids = np.ascontiguousarray(ids)
        there, headers = np.empty(len(ids), dtype=bool), np.empty((len(ids), 2), dtype=np.uint32)
        self._engine.describe(
            self._index, ids.ctypes.data, len(ids), state=0, headers=headers.ctypes.data, contains=there.ctypes.data
        )
        return there, headers

    def delete(self, ids: Array) -> None:
        """Deletes rows, int64 ``(n,)``."""
        ids = np.array(ids, dtype=np.int64)
        self._engine.delete(self._index, ids.ctypes.data, len(ids))

    def set(self, ids: Array, weights: Array, headers: Array | None) -> None:
        """Sets rows to float32 ``(n, dim)``, and what is known of their updates to uint32 ``(n, 2)``."""
        ids = np.array(ids, dtype=np.int64)
        weights = np.array(weights, dtype=np.float32, order="C")
        if headers is None:
            self._engine.set(self._index, ids.ctypes.data, len(ids), weights.ctypes.data, 0)
        else:
            headers = np.array(headers, dtype=np.uint32, order="C")
            self._engine.set_copies(self._index, ids.ctypes.data, len(ids), weights.ctypes.data, headers.ctypes.data)


class UnseenRows:
    """What ids of a table read as without a row, even those that still have one.

    Args:
        store: a working copy with its tables open.
        output: of the table.
    """

    def __init__(self, store: EmbeddingStore, output: LookupOutput) -> None:
        self._engine = store.session.engine
        self._dim = output.dim
        self._unseen = _core.UnseenRows[output.unseen.upper()]
        self._index = store.session.catalog.open_without_rows(store.table(output.table).opened, self._engine)

    def __call__(self, ids: Array, mean: list[float] | None) -> Array:
        """Float32 ``(n, dim)`` of int64 ``(n,)``; `mean` is what is read as the mean of rows, where that is read."""
        ids = np.ascontiguousarray(ids)
        rows = np.empty((len(ids), self._dim), dtype=np.float32)
        self._engine.get(self._index, ids.ctypes.data, len(ids), self._unseen, rows.ctypes.data, mean)
        return rows


def _make_directory(checkpoint: Path) -> Path:
    try:
        return make_temporary_directory(_prefix(checkpoint), checkpoint.parent)
    except OSError as error:
        directory = make_temporary_directory("damo_torchrec-serving-")
        _log.warning("nothing can be written beside %s (%s): its rows are copied to %s", checkpoint, error, directory)
        if on_tmpfs(str(directory)):
            _log.warning("%s is on tmpfs, that is, in memory beyond memory_budget: set TMPDIR to a disk", directory)
        return directory


def _prefix(checkpoint: Path) -> str:
    return f".{checkpoint.name}.serving-"


@contextmanager
def _claimed(checkpoint: Path) -> Iterator[None]:
    """Removes working copies that killed processes left, while no other process makes one."""
    descriptor = os.open(checkpoint, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        if lock(descriptor, fcntl.LOCK_EX, _PATIENCE):
            for left in checkpoint.parent.iterdir():
                if left.name.startswith(_prefix(checkpoint)):
                    _remove_if_left(left)
        else:
            _log.warning(
                "%s has held the lock of %s for %.0f s: what killed processes left beside it is not removed",
                holders(descriptor),
                checkpoint,
                _PATIENCE,
            )
        yield
    finally:
        os.close(descriptor)


def _mark(directory: Path) -> None:
    """Has the directory say that it is a working copy, where a store passes over what is no checkpoint."""
    with os_errors(f"cannot make {directory}"):
        (directory / CHECKPOINTS).mkdir()
        mark_temporary(directory / CHECKPOINTS)


def _is_marked(directory: Path) -> bool:
    """Whether it is a working copy, and of this user: a name alone proves nothing."""
    return is_directory(directory) and directory.stat().st_uid == os.geteuid() and is_temporary(directory / CHECKPOINTS)


def _remove_if_left(directory: Path) -> None:
    if not _is_marked(directory):
        return
    try:
        held = StoreDirectory(directory)
    except (DamoError, ValueError):  # in use, or none of ours
        return
    _log.info("removing %s, which was left by a process that did not end in order", directory)
    try:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        held.release()
