"""Directories that are there whole or not at all, whatever interrupts their making or their removal."""

import errno
import itertools
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from damo_torchrec.checkpoints.exchange import exchange
from damo_torchrec.checkpoints.in_use import InUse, is_in_use, unused
from damo_torchrec.checkpoints.layout import removed_name, staged_entries, staged_name, unfinished_entries
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.temporary_directory import is_temporary, mark_temporary, remove_temporary
from damo_torchrec.files import os_errors, sync_directory

# A directory that has yet to get its name, or had one, in the temporary one around it.
_CONTENTS = "contents"

# Whether a directory that is there is one that a new one of its name may replace.
MayReplace = Callable[[Path], bool]

_log = logging.getLogger(__name__)


def never(target: Path) -> bool:
    """The `MayReplace` of what needs a new directory."""
    return False


def check_target(target: Path, what: str = "checkpoint", may_replace: MayReplace = never) -> None:
    """Raises ValueError if a `what` cannot be made at `target`: it exists for good, or its parent does not."""
    if os.path.lexists(target) and not may_replace(target):
        raise ValueError(f"{target} exists already: a {what} needs a new directory")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory: a {what} needs an existing parent")


def build_directory(
    target: Path,
    what: str,
    fill: Callable[[Path], None],
    other_name: Callable[[], Path] | None = None,
    may_replace: MayReplace = never,
) -> Path:
    """Makes the directory `target`: `fill` gets a directory beside it, which then gets its name. Returns it.

    Args:
        target: the new directory.
        what: it is, for messages.
        fill: syncs what is in folders of the directory that it gets; the files beside these are synced here.
        other_name: another one beside it to make in its place, should somebody else have made it in the meantime.
        may_replace: whether it takes the place of a `target` that is there, which is removed then.

    Raises:
        ValueError: `target` exists for good, or its parent does not.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    unfinished: UnfinishedDirectory | None = None
    with os_errors(f"cannot write the {what} {target}"):
        try:
            unfinished = UnfinishedDirectory(target, what, other_name, may_replace)
            fill(unfinished.path)
            return unfinished.finish()
        except BaseException:
            if unfinished is not None:
                unfinished.abandon()
            raise


class UnfinishedDirectory:
    """A directory beside `target` to fill, which then gets its name. Arguments and errors are `build_directory`'s.

    Whoever has made one calls `finish` or `abandon`. It may be in another thread.
    """

    def __init__(
        self,
        target: Path,
        what: str,
        other_name: Callable[[], Path] | None = None,
        may_replace: MayReplace = never,
    ) -> None:
        if other_name is None or not target.exists():
            check_target(target, what, may_replace)
        self._target, self._what = target, what
        self._other_name, self._may_replace = other_name, may_replace
        self._staging = _Staging(target)
        try:
            with os_errors(f"cannot write the {what} {target}"):
                _clear_killed(target)
                self.path = self._staging.make()
        except BaseException:
            self.abandon()
            raise

    def finish(self) -> Path:
        """Syncs the files in it, gives it its name and returns that. If that fails, `abandon` is left to do."""
        with os_errors(f"cannot write the {self._what} {self._target}"):
            for file in self.path.iterdir():
                if file.is_file():
                    with file.open("rb") as opened:
                        os.fsync(opened.fileno())
            sync_directory(self.path)
            target = _rename(self.path, self._target, self._other_name, self._may_replace)
            sync_directory(target.parent)
            self._staging.remove()
            self._staging.end()
        return target

    def abandon(self) -> None:
        """Removes it. Idempotent."""
        try:
            self._staging.remove()
        finally:
            self._staging.end()


class _Staging:
    """An empty directory to fill, which nobody else fills or removes until `end`. It may be interrupted anywhere.

    It lies in a temporary directory, which stays when it gets its name, and is removed in the end.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._made: Path | None = None  # or about to be
        self._in_use: InUse | None = None

    def make(self) -> Path:
        for number in itertools.count():
            around = self._target.with_name(staged_name(self._target.name, number))
            if os.path.lexists(around) and (is_in_use(around) or not _clear(around)):
                # Another thread fills it, or a process of this number, from another container; or it is somebody's.
                continue
            self._made = around
            try:
                around.mkdir()
                self._in_use = InUse(around)
                mark_temporary(around)
            except (FileExistsError, FileNotFoundError):  # made, or removed, by somebody else
                self.end()
                self._made = None
                continue
            staged = around / _CONTENTS
            staged.mkdir()
            return staged
        raise AssertionError("there is always another number")

    def remove(self) -> None:
        if self._made is not None and (self._in_use is not None or not is_in_use(self._made)):
            with suppress(OSError):
                _clear(self._made)

    def end(self) -> None:
        if self._in_use is not None:
            self._in_use.end()
            self._in_use = None


def _clear(directory: Path) -> bool:
    """Removes a temporary directory, or an empty one, which is about to be one or was; returns whether it was."""
    if is_temporary(directory):
        remove_temporary(directory)
        return True
    try:
        directory.rmdir()  # not if there is something in it
    except OSError:
        return False
    return True


def _rename(staged: Path, target: Path, other_name: Callable[[], Path] | None, may_replace: MayReplace) -> Path:
    while True:
        try:
            os.rename(staged, target)
            return target
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if may_replace(target):
                exchange(staged, target)
                _log.info("%s replaces the one that was there", target)
                return target
            if other_name is None:
                raise
            target = other_name()


def remove_directory(directory: Path, what: str) -> None:
    """Removes the directory, a `what`. Interrupted, it leaves what `clear_unfinished` removes.

    Raises:
        DamoError: the system refuses.
    """
    with os_errors(f"cannot remove the {what} {directory}"):
        for number in itertools.count():
            around = directory.with_name(removed_name(directory.name, number))
            # What an interrupted removal of another one of that name left, or something of somebody's.
            if not os.path.lexists(around) or _clear(around):
                break
        try:
            around.mkdir()
            mark_temporary(around)
            os.rename(directory, around / _CONTENTS)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            _clear(around)
            os.rename(directory, around)  # this takes no space; interrupted, what is left is nobody's to remove
            shutil.rmtree(around)
        else:
            remove_temporary(around)


def clear_unfinished(where: Path) -> None:
    """Removes what an interrupted making, or an interrupted removal, left in the directory `where`.

    What somebody is at work on stays, and so does what only seems to be one of these.
    """
    _clear_left(unfinished_entries(where))


def _clear_killed(target: Path) -> None:
    """Removes what processes that were killed while they made `target` left beside it, each as large as that."""
    try:
        _clear_left(staged_entries(target))
    except OSError as error:
        _log.warning("cannot remove what was left when the making of %s was interrupted: %s", target, error)


def _clear_left(entries: Iterable[Path]) -> None:
    for left in entries:
        with unused(left) as free:
            if free and is_directory(left):
                with suppress(FileNotFoundError):  # somebody else removes it, too
                    if _clear(left):
                        _log.info("removed %s, which was left unfinished", left)
