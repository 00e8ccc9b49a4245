"""What the system says of files, in this package's errors."""

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from damo_torchrec.errors import DamoError, OutOfSpaceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turns an OSError into OutOfSpaceError or DamoError that says what was being done.

    One that hides an interrupt becomes that interrupt: shutil.rmtree closes a descriptor again that was closed when
    Ctrl-C came.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        kind = OutOfSpaceError if error.errno in _FULL else DamoError
        raise kind(f"{what}: {error}") from error


def write_file(path: Path, content: bytes) -> None:
    """Makes a file. Raises OutOfSpaceError that says for how many bytes there has to be space, or DamoError."""
    with os_errors(f"cannot write {len(content)} bytes to {path}"), path.open("xb") as file:
        file.write(content)


def replace_file(path: Path, content: bytes) -> None:
    """Makes a file, or has it hold something else, whole or not at all: for files that nobody else is to have made.

    Raises:
        OutOfSpaceError, DamoError: the system refuses, or what is there is no regular file.
    """
    with os_errors(f"cannot write {path}"), staged_file(path) as file:
        file.write(content)


def write_output(path: Path, content: bytes) -> None:
    """As `replace_file`, for a path that the user named: a symbolic link there stays, and what it leads to is replaced.

    Raises:
        OutOfSpaceError, DamoError: the system refuses, or what is there is no regular file, nor a link to one.
    """
    replace_file(Path(os.path.realpath(path)), content)


@contextmanager
def staged_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to fill, that in the end takes the place of `path`, whole and synced; after an error it is removed.

    Its name is nobody else's: several may be at work on one path, which holds what the last of them wrote.

    Raises:
        OSError: the system refuses, or what is there is no regular file: a device, a FIFO, a directory, a link.
    """
    check_replaceable(path)
    staged = path.with_name(f".damo-{secrets.token_hex(8)}.tmp")  # as short as that: names have limits
    with staged.open("xb") as file:  # never through a link that somebody put there
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(staged, path)
        except BaseException:
            with suppress(OSError):
                staged.unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def check_replaceable(path: Path) -> None:
    """Raises OSError if something is there that is no regular file, which a file in its place would end."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError("what is there is no regular file, and is not replaced by one")


def make_temporary_directory(prefix: str, parent: Path | None = None) -> Path:
    """Makes a directory of a new name, by default where temporary files go, with the umask's mode as all of a store.

    Python's `tempfile` would give it to the user alone, whatever the umask says.

    Raises:
        OSError: the system refuses.
    """
    while True:
        path = (parent or Path(tempfile.gettempdir())) / f"{prefix}{secrets.token_hex(6)}"
        with suppress(FileExistsError):
            path.mkdir()
            return path


def bytes_in(directory: Path) -> int:
    """Bytes of the files in a directory and below, but for those that vanish meanwhile."""
    total = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def bytes_read() -> int:
    """Bytes that this process has read so far, from files and all else; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def check_space(path: Path, size: int) -> None:
    """Raises OutOfSpaceError or DamoError unless a file of `size` bytes can be made at `path`; leaves none."""
    with os_errors(f"cannot reserve {size} bytes in {path.parent}"):
        try:
            with path.open("xb") as file:
                if size > 0:
                    os.posix_fallocate(file.fileno(), 0, size)
        finally:
            path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Waits until the entries of the directory are on the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def on_tmpfs(path: str) -> bool:
    """Whether `path` lies on a file system in memory, as far as the system tells."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return False
    kinds = {fields[1]: fields[2] for fields in (line.split() for line in mounts) if len(fields) > 2}
    where = Path(path).resolve()
    return next((kinds[str(p)] for p in [where, *where.parents] if str(p) in kinds), "") in (
        "tmpfs",
        "ramfs",
    )
