"""Directories of a process's own, beside a checkpoint whose rows it copies into them: the checkpoint stays as it is.

::

    .NAME.PURPOSE-XXXX/    beside the checkpoint NAME; laid out as a store, and locked as one while it is in use
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.directory import StoreDirectory
from damo_torchrec.errors import DamoError

_log = logging.getLogger(__name__)


class RecoveredRows:
    """A checkpoint's rows, by hard links, with its journal written to table files as if the store went on from it.

    Args:
        checkpoint: nothing is changed there.
        options: of the engine that writes them, within its memory budget.

    Raises:
        CorruptionError: the checkpoint is damaged.
        OutOfSpaceError, DamoError, OSError: the disk is full or refuses.
    """

    def __init__(self, checkpoint: Path, options: _core.StoreOptions) -> None:
        with claimed(checkpoint, "reading"):
            path = make_directory(checkpoint, "reading")
            self._directory = StoreDirectory(path)
        try:
            self._directory.start_live(self._directory.prepare_live(checkpoint))
            _core.Store(str(self.rows), False, False, options).close()
        except BaseException:
            self.remove()
            raise

    @property
    def rows(self) -> Path:
        """Where RocksDB finds them."""
        return self._directory.live

    def remove(self) -> None:
        """Removes them."""
        shutil.rmtree(self._directory.path, ignore_errors=True)
        self._directory.release()


def make_directory(checkpoint: Path, purpose: str) -> Path:
    """A new directory beside `checkpoint`. REQUIRES: it is `claimed` until the directory is locked.

    Raises:
        OSError: nothing can be written there.
    """
    return Path(tempfile.mkdtemp(prefix=_prefix(checkpoint, purpose), dir=checkpoint.parent))


@contextmanager
def claimed(checkpoint: Path, purpose: str) -> Iterator[None]:
    """Removes directories that killed processes left, while no other process makes one."""
    descriptor = os.open(checkpoint, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _locked(descriptor):
            for left in checkpoint.parent.glob(f"{_prefix(checkpoint, purpose)}*"):
                _remove_if_left(left)
        yield
    finally:
        os.close(descriptor)


def _prefix(checkpoint: Path, purpose: str) -> str:
    return f".{checkpoint.name}.{purpose}-"


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return False
    return True


def _remove_if_left(directory: Path) -> None:
    try:
        lock = StoreDirectory(directory)
    except (DamoError, ValueError):  # in use
        return
    _log.info("removing %s, which was left by a process that did not end in order", directory)
    try:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        lock.release()
