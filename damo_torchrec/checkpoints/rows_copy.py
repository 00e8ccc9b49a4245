"""The rows of a checkpoint in another directory: table files are shared by hard links, or copied.

A hard link is the same file: what somebody writes into it later is in all checkpoints that share it.
"""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath

from damo_torchrec.checkpoints.layout import ROWS, is_log, is_table_file
from damo_torchrec.checkpoints.regular_file import NotRegularError, check_regular, open_regular
from damo_torchrec.files import sync_directory

_CHUNK = 1 << 20
_COPIED_AT_ONCE = 64 << 20  # between two looks for Ctrl-C
# What systems say that cannot: between these file systems, or at all.
_UNABLE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def rows_files(names: Iterable[str]) -> list[str]:
    """Names in the directory of rows, of those of a checkpoint's files that lie there."""
    return [PurePath(name).name for name in names if str(PurePath(name).parent) == ROWS]


def copy_rows(checkpoint: Path, names: Iterable[str], target: Path, link: Callable[[Path], bool]) -> bool:
    """Makes the directory `target` one with the rows of a checkpoint, without its journal. It is synced.

    Args:
        checkpoint: whose.
        names: of its files, as its manifest has them. Others in its directory are passed over.
        target: a new directory.
        link: whether a table file may be shared.

    Returns: whether all table files are shared.

    Raises:
        OSError: one of the files is no regular one, or the system refuses.
    """
    rows = checkpoint / ROWS
    shared = True
    target.mkdir()
    for name in rows_files(names):
        if is_log(name):
            continue
        if is_table_file(name) and link(rows / name) and _link(rows / name, target / name):
            continue
        shared &= not is_table_file(name)
        copy_file(rows / name, target / name)
    sync_directory(target)
    return shared


def is_owned(file: Path) -> bool:
    """Whether the regular file `file` is this user's."""
    return check_regular(file).st_uid == os.geteuid()


def is_owned_alone(file: Path) -> bool:
    """Whether the regular file `file` is this user's, and nobody else may write it."""
    status = check_regular(file)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def never(_: Path) -> bool:
    """That no file may be shared."""
    return False


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another device, a file system without links, or one link too many
        return False
    try:
        check_regular(target)  # else it was replaced in the meantime
    except NotRegularError:
        target.unlink()
        raise
    return True


def copy_file(source: Path, target: Path) -> None:
    """Copies a regular file, and syncs the copy. File systems that can share the bytes until one is written do."""
    with open_regular(source) as reading, open(target, "xb", opener=_as_rocksdb_does) as writing:
        if not _copied_by_system(reading.fileno(), writing.fileno()):
            shutil.copyfileobj(reading, writing, _CHUNK)
            writing.flush()
        os.fsync(writing.fileno())


def _copied_by_system(source: int, target: int) -> bool:
    """Whether the system has copied one file to the other, an empty one, by itself."""
    try:
        while os.copy_file_range(source, target, _COPIED_AT_ONCE):
            pass
    except OSError as error:
        if error.errno not in _UNABLE or os.fstat(target).st_size > 0:
            raise
    return os.fstat(target).st_size == os.fstat(source).st_size  # some systems find no bytes where they are unable


def _as_rocksdb_does(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)  # under a umask of 002, too, no group may write it
