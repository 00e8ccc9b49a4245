"""Directories that are there whole or not at all, whatever interrupts their making or their removal."""

import errno
import itertools
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from damo_torchrec.checkpoints.in_use import InUse, is_in_use
from damo_torchrec.checkpoints.layout import removed_name, staged_name, unfinished_entries
from damo_torchrec.files import os_errors, sync_directory

_log = logging.getLogger(__name__)


def check_target(target: Path, what: str = "checkpoint") -> None:
    """Raises ValueError if a `what` cannot be made at `target`: it exists, or its parent does not."""
    if target.exists():
        raise ValueError(f"{target} exists already: a {what} needs a new directory")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory: a {what} needs an existing parent")


def build_directory(
    target: Path, what: str, fill: Callable[[Path], None], other_name: Callable[[], Path] | None = None
) -> Path:
    """Makes the directory `target`: `fill` gets a directory beside it, which is then renamed. Returns it.

    Args:
        target: the new directory.
        what: it is, for messages.
        fill: syncs what is in folders of the directory that it gets; the files beside these are synced here.
        other_name: another one beside it to make in its place, should somebody else have made it in the meantime.

    Raises:
        ValueError: `target` exists, or its parent does not.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    if other_name is None or not target.exists():
        check_target(target, what)
    with os_errors(f"cannot write the {what} {target}"):
        staging = _Staging(target)
        try:
            staged = staging.make()
            fill(staged)
            for file in staged.iterdir():
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            sync_directory(staged)
            target = _rename(staged, target, other_name)
        except BaseException:
            staging.remove()
            raise
        finally:
            staging.end()
        sync_directory(target.parent)
    return target


class _Staging:
    """An empty directory to fill, which nobody else fills or removes until `end`. It may be interrupted anywhere."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._made: Path | None = None  # or about to be
        self._in_use: InUse | None = None

    def make(self) -> Path:
        for number in itertools.count():
            staged = self._target.with_name(staged_name(self._target.name, number))
            if staged.exists():
                if is_in_use(staged):  # another thread fills it, or a process of this number, from another container
                    continue
                shutil.rmtree(staged)
            self._made = staged
            try:
                staged.mkdir()
            except FileExistsError:
                self._made = None
                continue
            self._in_use = InUse(staged)
            return staged
        raise AssertionError("there is always another number")

    def remove(self) -> None:
        if self._made is not None and (self._in_use is not None or not is_in_use(self._made)):
            shutil.rmtree(self._made, ignore_errors=True)

    def end(self) -> None:
        if self._in_use is not None:
            self._in_use.end()


def _rename(staged: Path, target: Path, other_name: Callable[[], Path] | None) -> Path:
    while True:
        try:
            os.rename(staged, target)
            return target
        except OSError as error:
            if other_name is None or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            target = other_name()


def remove_directory(directory: Path, what: str) -> None:
    """Removes the directory, a `what`. Interrupted, it leaves what `clear_unfinished` removes.

    Raises:
        DamoError: the system refuses.
    """
    with os_errors(f"cannot remove the {what} {directory}"):
        hidden = directory.with_name(removed_name(directory.name))
        if hidden.exists():  # an interrupted removal of another one of that name
            shutil.rmtree(hidden)
        os.rename(directory, hidden)
        shutil.rmtree(hidden)


def clear_unfinished(where: Path) -> None:
    """Removes what an interrupted making, or an interrupted removal, left in the directory `where`.

    What somebody is at work on stays.
    """
    for left in unfinished_entries(where):
        if not is_in_use(left):
            _log.info("removing %s, which was left unfinished", left)
            with suppress(FileNotFoundError):  # somebody else removes it, too
                shutil.rmtree(left)
