"""A store's directory: who has it open, and the live rows.

The live rows are scratch: a checkpoint is all that a later opening needs.
"""

import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from damo_torchrec.checkpoints.in_use import holders, processes_with
from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    LIVE,
    LOCK_FILE,
    PREPARED_LIVE,
    is_rows,
    unclean_live,
    unclean_lives,
)
from damo_torchrec.checkpoints.regular_file import NotRegularError, is_directory, open_or_make
from damo_torchrec.checkpoints.rows_copy import copy_rows, is_owned, is_owned_alone, never
from damo_torchrec.errors import CorruptionError, DamoError, StoreLockedError
from damo_torchrec.files import os_errors, sync_directory

_log = logging.getLogger(__name__)

# How long the children of a dead process may hold its lock: a data loader's workers look every five seconds whether
# their parent lives.
_CHILDREN_END_AFTER = 10.0  # seconds


class StoreDirectory:
    """A store's directory, locked for this process while it is open.

    Args:
        path: made, with its parents, if it does not exist.

    Raises:
        ValueError: `path` is a file, or a directory that is neither empty nor a store.
        StoreLockedError: the store is open already.
        CorruptionError: its lock or one of its directories is a link, or its lock a file that is something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise ValueError(f"a store is a directory, but {path} is a file")
        if path.is_dir() and not self.is_store(path) and any(path.iterdir()):
            raise ValueError(f"{path} is neither empty nor a store: it has no {CHECKPOINTS}/ and no {LOCK_FILE}")
        with os_errors(f"cannot make the store {path}"):
            path.mkdir(exist_ok=True, parents=True)
        self._lock = -1
        try:
            self._acquire()
            self._check_directories()
        except BaseException:
            self.release()
            raise

    @staticmethod
    def is_store(path: Path) -> bool:
        """Whether `path` looks like a store's directory."""
        return (path / LOCK_FILE).is_file() or (path / CHECKPOINTS).is_dir()

    def _acquire(self) -> None:
        lock_path = self.path / LOCK_FILE
        with os_errors(f"cannot open {lock_path}"):
            try:
                self._lock = open_or_make(lock_path)
            except NotRegularError as error:
                raise CorruptionError(str(error)) from error
        _check_lock(lock_path, self._lock)
        give_up = time.monotonic() + _CHILDREN_END_AFTER
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
                if not _has_ended(holder) or time.monotonic() >= give_up:
                    raise StoreLockedError(self._held_by(holder)) from error
            time.sleep(0.1)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _check_directories(self) -> None:
        """Raises CorruptionError if a directory in which files are made and removed is a link to one elsewhere."""
        for directory in (self.checkpoints_path, self.live, self.prepared):
            if directory.is_symlink():
                raise CorruptionError(f"{directory}: expected a directory of the store, found a symbolic link")

    def _held_by(self, holder: str) -> str:
        what = f"the store {self.path} is open already, in process {holder or 'unknown'}"
        if holder == str(os.getpid()):
            return f"{what}, which is this one: close() the store that it was opened as before"
        if _has_ended(holder):
            children = ", ".join(map(str, processes_with(self.path / LOCK_FILE))) or "unknown"
            return f"{what}, which has ended, but others that it started hold its lock still: processes {children}"
        if not holder:
            what = f"the store {self.path} is open already, or somebody locks it: {holders(self._lock)}"
        return f"{what}: close it there first, or open it with read_only=True"

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
        return self.path / LIVE

    @property
    def prepared(self) -> Path:
        """What is about to become the live rows."""
        return self.path / PREPARED_LIVE

    @property
    def checkpoints_path(self) -> Path:
        """Where checkpoints are by default."""
        return self.path / CHECKPOINTS

    def set_live_aside(self, keep: int) -> list[Path]:
        """Renames the live rows, which a crash left behind, and removes all but the newest `keep` that were set aside.

        Returns those that are kept, oldest first.
        """
        with os_errors(f"cannot set {self.live} aside"):
            earlier = unclean_lives(self.path)
            number = 1 + max((int(path.name.rpartition("-")[2]) for path in earlier), default=0)
            aside = self.path / unclean_live(number)
            os.rename(self.live, aside)
            rows = [*earlier, aside]
            for path in rows[: len(rows) - keep]:
                remove_rows(path)
                _log.info("removed %s: of rows that crashes left behind, the newest %d are kept", path, keep)
        return rows[len(rows) - keep :]

    def remove_live(self) -> None:
        """Removes the live rows. REQUIRES: a checkpoint holds them, or the user gave them up."""
        with os_errors(f"cannot remove {self.live}"):
            remove_rows(self.live)

    def prepare_live(self, checkpoint: Path, names: Iterable[str], *, copy: bool = False) -> Path:
        """Makes a directory with the rows of `checkpoint` beside the live ones, but its journal, for `start_live`.

        Table files are shared by hard links, if they are this user's; from elsewhere only those that nobody else may
        write.

        Args:
            checkpoint: whose.
            names: of its files. Others that lie there are passed over.
            copy: whether none is shared from elsewhere.
        """
        inside = checkpoint.parent == self.checkpoints_path
        link = is_owned if inside else never if copy else is_owned_alone
        with os_errors(f"cannot make {self.prepared} of the rows of {checkpoint}"):
            self.remove_prepared()
            shared = copy_rows(checkpoint, names, self.prepared, link)
        if not shared:
            _log.info("copied table files of %s, which are not shared by hard links", checkpoint)
        return self.prepared

    def remove_prepared(self) -> None:
        """Removes what `prepare_live` made, unless it has become the live rows."""
        remove_rows(self.prepared)

    def start_live(self, fresh: Path) -> None:
        """Makes what `prepare_live` made the live rows, in place of those that were."""
        with os_errors(f"cannot start the live rows of {self.path}"):
            self.remove_live()
            os.rename(fresh, self.live)
            sync_directory(self.path)


def remove_rows(directory: Path) -> None:
    """Removes a directory of rows, if it is there. Raises DamoError if it is something else by such a name."""
    if not os.path.lexists(directory):
        return
    if not is_directory(directory) or not is_rows([entry.name for entry in directory.iterdir()]):
        raise DamoError(f"{directory} is no directory of rows, which a store has by this name: move it away")
    shutil.rmtree(directory)


def _check_lock(path: Path, descriptor: int) -> None:
    """Raises CorruptionError unless the file is a lock, which may be written over: it has one name and one number."""
    content, names = os.pread(descriptor, 32, 0), os.fstat(descriptor).st_nlink
    if names > 1:
        found = f"a file with {names} names, which are hard links to each other"
    elif not re.fullmatch(rb"(\d+\n)?", content):
        found = f"{content!r}"
    else:
        return
    raise CorruptionError(
        f"{path}: expected a store's lock, which holds the number of a process, found {found}. "
        "It was left as it is: remove it, if no process has the store open"
    )


def _has_ended(process: str) -> bool:
    """Whether there is no process of this number any more, or one that has yet to be waited for."""
    if not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True
    except OSError:  # of another user
        return False
