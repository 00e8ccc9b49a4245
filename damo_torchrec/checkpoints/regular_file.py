"""Files that others may have made: read only if they are regular ones in their place, and never waited for.

A symbolic link would have a file of somewhere else read, a FIFO would never end, a device may do anything.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegularError(OSError):
    """It is no regular file: a symbolic link, a FIFO, a socket, a device or a directory."""

    def __init__(self, path: Path, mode: int) -> None:
        self.what = _what(mode)
        super().__init__(f"{path} is {self.what}, expected a regular file")


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file to read it.

    Raises:
        NotRegularError: it is something else.
        OSError: it is not there, or the system refuses.
    """
    check_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):  # it has been replaced meanwhile
        file.close()
        raise NotRegularError(path, mode)
    return file


def open_or_make(path: Path) -> int:
    """A descriptor to read and write the regular file `path`, made if it is not there; raises as `open_regular`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError:
        check_regular(path)
        raise
    if not stat.S_ISREG(mode := os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(path, mode)
    return descriptor


def check_regular(path: Path) -> os.stat_result:
    """What the system says of the regular file `path`; raises as `open_regular`."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularError(path, status.st_mode)
    return status


def read_regular(path: Path, most: int) -> bytes:
    """The contents of a regular file. Raises ValueError if they are more than `most` bytes, or as `open_regular`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return content


def is_regular(path: Path) -> bool:
    """Whether `path` is a regular file, and no link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def is_directory(path: Path) -> bool:
    """Whether `path` is a directory, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _what(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
