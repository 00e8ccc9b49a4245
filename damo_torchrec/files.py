"""What the system says of files, in this package's errors."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from damo_torchrec.errors import CorruptionError, DamoError, OutOfSpaceError

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


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file `path`, in a directory that somebody else may have filled.

    No link is followed, and nothing waits for what may never come, as the opening of a FIFO does.

    Args:
        path: where the file is, or will be with ``os.O_CREAT``.
        flags: of ``os.open``.

    Raises:
        CorruptionError: it is a symbolic link, a directory, a FIFO, a socket or a device.
        OSError: it cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        check_regular(path)
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            check_regular(path)
            raise CorruptionError(f"{path}: expected a regular file, found another")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(path: Path) -> None:
    """Raises CorruptionError that says what is at `path`, if that is there and no regular file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO"}
    if (kind := stat.S_IFMT(mode)) != stat.S_IFREG:
        raise CorruptionError(f"{path}: expected a regular file, found {kinds.get(kind, 'a socket or a device')}")


def read_regular(path: Path) -> bytes:
    """The content of a file, opened as by `open_regular`."""
    with open(open_regular(path), "rb") as file:
        return file.read()


def write_file(path: Path, content: bytes) -> None:
    """Makes a file. Raises OutOfSpaceError that says for how many bytes there has to be space, or DamoError."""
    with os_errors(f"cannot write {len(content)} bytes to {path}"), path.open("xb") as file:
        file.write(content)


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
