"""A store's directory: who has it open, its checkpoints, and the live rows.

::

    LOCK                   held (flock) by the process that has the store open
    live/                  the rows of the open store; there only while it is open, or after a crash
    live.unclean-N/        live rows that a crash left behind, set aside
    checkpoints/step_N/    complete: manifest.json, rows/, and what save_model adds

The live rows are scratch: a directory under ``checkpoints`` is complete, because it is written under another name and
renamed, and it is all that a later opening needs.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.errors import CorruptionError, DamoError, OutOfSpaceError, StoreLockedError
from damo_torchrec.manifest import FILE_NAME, Manifest

ROWS = "rows"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = logging.getLogger(__name__)


@contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Turns an OSError into OutOfSpaceError or DamoError that says what was being done."""
    try:
        yield
    except OSError as error:
        kind = OutOfSpaceError if error.errno in _FULL else DamoError
        raise kind(f"{what}: {error}") from error


def sync_directory(path: Path) -> None:
    """Waits until the entries of the directory are on the device."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def build_checkpoint(target: Path, fill: Callable[[Path], None]) -> None:
    """Makes the directory `target` whole or not at all: `fill` gets a directory beside it, which is then renamed.

    Raises:
        ValueError: `target` exists, or its parent does not.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    if target.exists():
        raise ValueError(f"{target} exists already: a checkpoint needs a new directory")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory: a checkpoint needs an existing parent")
    staged = target.parent / f".{target.name}.{os.getpid()}.tmp"
    with os_errors(f"cannot write the checkpoint {target}"):
        if staged.exists():
            shutil.rmtree(staged)
        try:
            staged.mkdir()
            fill(staged)
            for file in staged.iterdir():
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            sync_directory(staged)
            os.rename(staged, target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync_directory(target.parent)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a directory that holds a checkpoint, or one that has lost its manifest."""
    return (path / FILE_NAME).is_file() or (path / ROWS).is_dir()


class StoreDirectory:
    """A store's directory, locked for this process while it is open.

    Args:
        path: made, with its parents, if it does not exist.

    Raises:
        ValueError: `path` is a file, or a directory that is neither empty nor a store.
        StoreLockedError: the store is open already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ValueError(f"a store is a directory, but {path} is a file")
        if path.is_dir() and not self.is_store(path) and any(path.iterdir()):
            raise ValueError(
                f"{path} is neither empty nor a store: it has no {self.checkpoints_path.name}/ and no LOCK"
            )
        with os_errors(f"cannot make the store {path}"):
            path.mkdir(exist_ok=True, parents=True)
        self._lock = -1
        try:
            self._acquire()
        except BaseException:
            self.release()
            raise

    @staticmethod
    def is_store(path: Path) -> bool:
        """Whether `path` looks like a store's directory."""
        return (path / "LOCK").is_file() or (path / "checkpoints").is_dir()

    def _acquire(self) -> None:
        lock_path = self.path / "LOCK"
        with os_errors(f"cannot open {lock_path}"):
            self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 32).decode(errors="replace").strip() or "another process"
            raise StoreLockedError(
                f"the store {self.path} is open already, in process {holder}: close it there first, or open it "
                "with read_only=True"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Lets others open the store."""
        if self._lock >= 0:
            # Closing is not enough: a forked child may have the file open still.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            descriptor, self._lock = self._lock, -1
            os.close(descriptor)

    @property
    def live(self) -> Path:
        """The rows of the open store."""
        return self.path / "live"

    @property
    def checkpoints_path(self) -> Path:
        """Where checkpoints are by default."""
        return self.path / "checkpoints"

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints inside the store, oldest first."""
        return checkpoints_in(self.path)

    def default_checkpoint(self, step: int) -> Path:
        """A new name for a checkpoint at `step`: ``step_N``, or ``step_N.1`` and so on where that exists."""
        target = self.checkpoints_path / f"step_{step}"
        suffix = 0
        while target.exists():
            suffix += 1
            target = self.checkpoints_path / f"step_{step}.{suffix}"
        return target

    def clear_staged(self) -> None:
        """Removes what an interrupted checkpoint left: it was never complete."""
        for staged in self.checkpoints_path.glob(".*.tmp"):
            _log.info("removing the unfinished checkpoint %s", staged)
            shutil.rmtree(staged)

    def set_live_aside(self) -> Path:
        """Renames the live rows, which a crash left behind, and returns their new place."""
        number = 1
        while (aside := self.path / f"live.unclean-{number}").exists():
            number += 1
        os.rename(self.live, aside)
        return aside

    def remove_live(self) -> None:
        """Removes the live rows. REQUIRES: a checkpoint holds them, or the user gave them up."""
        with os_errors(f"cannot remove {self.live}"):
            if self.live.exists():
                shutil.rmtree(self.live)

    def prepare_live(self, checkpoint: Path) -> Path:
        """Makes a directory with the rows of `checkpoint` beside the live ones, for `start_live`."""
        fresh = self.path / "live.new"
        with os_errors(f"cannot prepare the rows of {checkpoint}"):
            if fresh.exists():
                shutil.rmtree(fresh)
            _core.link_or_copy_rows(str(checkpoint / ROWS), str(fresh))
        return fresh

    def start_live(self, fresh: Path) -> None:
        """Makes what `prepare_live` made the live rows, in place of those that were."""
        with os_errors(f"cannot start the live rows of {self.path}"):
            self.remove_live()
            os.rename(fresh, self.live)
            sync_directory(self.path)


def has_checkpoints(store: Path) -> bool:
    """Whether the store directory `store` holds a checkpoint, readable or not."""
    return any(is_checkpoint(path) for path in (store / "checkpoints").glob("[!.]*"))


def checkpoints_in(store: Path) -> list[Path]:
    """The complete checkpoints inside the store directory `store`, oldest first, without those that are damaged."""
    sequences, damaged = _read_checkpoints(store)
    for path, error in damaged.items():
        _log.warning("passing over the checkpoint %s: %s", path, error)
    return sorted(sequences, key=lambda path: sequences[path])


def newest_checkpoint(store: Path) -> Path:
    """The newest checkpoint inside a store.

    Raises:
        CorruptionError: there is none, or one is damaged, which may have been the newest.
    """
    sequences, damaged = _read_checkpoints(store)
    for path, error in damaged.items():
        raise CorruptionError(
            f"{error}. It may be the newest checkpoint of the store: name another one by restore=, or move {path} away"
        )
    if not sequences:
        raise CorruptionError(f"the store {store} has no complete checkpoint")
    return max(sequences, key=lambda path: sequences[path])


def _read_checkpoints(store: Path) -> tuple[dict[Path, int], dict[Path, CorruptionError]]:
    """Sequence numbers of a store's checkpoints, and what is wrong with the others."""
    sequences: dict[Path, int] = {}
    damaged: dict[Path, CorruptionError] = {}
    for path in (store / "checkpoints").glob("[!.]*"):
        if is_checkpoint(path):
            try:
                sequences[path] = Manifest.read(path).sequence
            except CorruptionError as error:
                damaged[path] = error
    return sequences, damaged


def find_checkpoint(store: Path, which: str | int | os.PathLike[str] | None) -> Path:
    """The checkpoint that `which` names: ``"latest"``, a step, a name inside the store, or a path.

    Raises:
        ValueError: there is none of that name.
        CorruptionError: there is none at all.
    """
    if which is None or which == "latest":
        return newest_checkpoint(store)
    candidates = [store / "checkpoints" / f"step_{which}"]
    if not isinstance(which, int):
        candidates = [Path(which), store / "checkpoints" / which]
    for candidate in candidates:
        if is_checkpoint(candidate):
            return candidate.absolute()
    names = ", ".join(p.name for p in checkpoints_in(store)) or "none"
    raise ValueError(f"the store {store} has no checkpoint {which!r}; it has {names}")


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
