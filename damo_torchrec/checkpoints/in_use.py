"""Which directories somebody works with, in whatever process: a lock says so, and ends with the process.

Whoever may read a file or a directory can lock it, and keep it locked. So nobody waits for such a lock for ever.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)

_PATIENCE = 10.0  # seconds


class InUse:
    """Says that a file or directory is in use, until `end`.

    Where the file system has no locks, nobody hears of it. Where somebody else has it locked for himself, and for more
    than some seconds, a warning says who.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = _open(path)
        try:
            if not lock(self._descriptor, fcntl.LOCK_SH, _PATIENCE):
                _log.warning(
                    "%s is used without a word to others, who may remove it meanwhile: %s has held its lock for %.0f s",
                    path,
                    holders(self._descriptor),
                    _PATIENCE,
                )
        except BaseException:  # locked or not, nobody else could end it
            self.end()
            raise

    def is_at(self, path: Path) -> bool:
        """Whether it is what lies at `path` now, and not what was there before."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(path))
        except FileNotFoundError:
            return False

    def end(self) -> None:
        """It is not in use any more, unless others say so. Idempotent."""
        if self._descriptor >= 0:
            lock(self._descriptor, fcntl.LOCK_UN)  # closing is not enough: a forked child may have it open still
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether somebody says so of the file or directory `path`; not if it is not there, or a link."""
    with unused(path) as free:
        return not free


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Gives whether nobody uses the file or directory `path`, as `is_in_use`; who begins to waits until this ends."""
    try:
        descriptor = _open(path)
    except OSError:
        yield True
        return
    try:
        yield lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def lock(descriptor: int, how: int, patience: float = 0.0) -> bool:
    """Locks a file or directory, as flock does with `how`.

    Args:
        descriptor: of it.
        how: ``fcntl.LOCK_SH``, ``LOCK_EX`` or ``LOCK_UN``.
        patience: how many seconds it waits for others.

    Returns:
        False if others have it locked all the time; True, too, on a file system without locks.
    """
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
        except OSError:  # a file system without locks
            return True
        time.sleep(0.05)


def holders(descriptor: int) -> str:
    """Who has a file or directory locked, or at least open, as far as this user may know: for messages."""
    processes = _with_lock(descriptor) or processes_with(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    return f"process {', '.join(map(str, processes))}" if processes else "another process"


def holders_of(path: Path) -> str:
    """As `holders`, of a path."""
    try:
        descriptor = _open(path)
    except OSError:
        return "another process"
    try:
        return holders(descriptor)
    finally:
        os.close(descriptor)


def processes_with(path: Path) -> list[int]:
    """The other processes that have the file `path` open, as far as this user may know: none without a /proc."""
    name, found = str(path.resolve()), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # Names alone: what some other file of a process lies on may not answer.
            if any(os.readlink(link) == name for link in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return sorted(set(found) - {os.getpid()})


def _with_lock(descriptor: int) -> list[int]:
    """The processes that locked it, by Linux's list of locks, which tells of all users' processes."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return []
    return sorted({int(line[4]) for line in lines if line[1:2] == ["FLOCK"] and line[5] == device} - {0, -1})


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
