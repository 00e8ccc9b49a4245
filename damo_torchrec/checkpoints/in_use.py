"""Which directories somebody works with, in whatever process: a lock says so, and ends with the process."""

import fcntl
import os
from pathlib import Path


class InUse:
    """Says that a file or directory is in use, until `end`. Where the file system has no locks, nobody hears of it."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO is not waited for
        _lock(self._descriptor, fcntl.LOCK_SH)

    def end(self) -> None:
        """It is not in use any more, unless others say so. Idempotent."""
        if self._descriptor >= 0:
            _lock(self._descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked child may have it open still
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether somebody says so of the file or directory `path`; not if it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    """Locks it now; False if others have it locked."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
