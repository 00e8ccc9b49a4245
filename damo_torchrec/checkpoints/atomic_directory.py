"""Directories that are there whole or not at all, whatever interrupts their making or their removal."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from damo_torchrec.checkpoints.layout import removed_name, staged_name, unfinished_entries
from damo_torchrec.files import os_errors, sync_directory

_log = logging.getLogger(__name__)


def check_target(target: Path, what: str = "checkpoint") -> None:
    """Raises ValueError if a `what` cannot be made at `target`: it exists, or its parent does not."""
    if target.exists():
        raise ValueError(f"{target} exists already: a {what} needs a new directory")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory: a {what} needs an existing parent")


def build_directory(target: Path, what: str, fill: Callable[[Path], None]) -> None:
    """Makes the directory `target`: `fill` gets a directory beside it, which is then renamed.

    Args:
        target: the new directory.
        what: it is, for messages.
        fill: syncs what is in folders of the directory that it gets; the files beside these are synced here.

    Raises:
        ValueError: `target` exists, or its parent does not.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    check_target(target, what)
    staged = target.with_name(staged_name(target.name))
    with os_errors(f"cannot write the {what} {target}"):
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
    """Removes what an interrupted making, or an interrupted removal, left in the directory `where`."""
    for left in unfinished_entries(where):
        _log.info("removing %s, which was left unfinished", left)
        shutil.rmtree(left)
