"""Checkpoints as directories: made whole or not at all, listed, found and removed."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from damo_torchrec.checkpoints.manifest import FILE_NAME, Manifest
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import os_errors, sync_directory

ROWS = "rows"
CHECKPOINTS = "checkpoints"
_STAGED, _REMOVED = ".tmp", ".removed"
_log = logging.getLogger(__name__)


def check_target(target: Path, what: str = "checkpoint") -> None:
    """Raises ValueError if a `what` cannot be made at `target`: it exists, or its parent does not."""
    if target.exists():
        raise ValueError(f"{target} exists already: a {what} needs a new directory")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory: a {what} needs an existing parent")


def free_name(where: Path, step: int) -> Path:
    """A new name for a checkpoint at `step`: ``step_N``, or ``step_N.1`` and so on where that exists."""
    target = where / f"step_{step}"
    suffix = 0
    while target.exists():
        suffix += 1
        target = where / f"step_{step}.{suffix}"
    return target


def build_checkpoint(target: Path, fill: Callable[[Path], None]) -> None:
    """`build_directory` of a checkpoint."""
    build_directory(target, "checkpoint", fill)


def build_directory(target: Path, what: str, fill: Callable[[Path], None]) -> None:
    """Makes the directory `target` whole or not at all: `fill` gets a directory beside it, which is then renamed.

    Raises:
        ValueError: `target` exists, or its parent does not.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    check_target(target, what)
    staged = target.parent / f".{target.name}.{os.getpid()}{_STAGED}"
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


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a directory that holds a checkpoint, or one that has lost its manifest."""
    return (path / FILE_NAME).is_file() or (path / ROWS).is_dir()


def has_checkpoints(store: Path) -> bool:
    """Whether the store directory `store` holds a checkpoint, readable or not."""
    return any(is_checkpoint(path) for path in (store / CHECKPOINTS).glob("[!.]*"))


def checkpoints_at(where: Path) -> list[Path]:
    """The complete checkpoints in the directory `where`, oldest first, without those that are damaged."""
    sequences, damaged = _read_checkpoints(where)
    for path, error in damaged.items():
        _log.warning("passing over the checkpoint %s: %s", path, error)
    return sorted(sequences, key=lambda path: sequences[path])


def newest_checkpoint_at(where: Path) -> Path | None:
    """The newest checkpoint in the directory `where`; None if there is none.

    Raises:
        CorruptionError: one is damaged, which may have been the newest.
    """
    sequences, damaged = _read_checkpoints(where)
    for path, error in damaged.items():
        raise CorruptionError(
            f"{error}. It may be the newest checkpoint: name another one (restore=, load_model), or move {path} away"
        )
    return max(sequences, key=lambda path: sequences[path], default=None)


def checkpoints_in(store: Path) -> list[Path]:
    """`checkpoints_at` of those inside the store directory `store`."""
    return checkpoints_at(store / CHECKPOINTS)


def newest_checkpoint(store: Path) -> Path:
    """The newest checkpoint inside a store.

    Raises:
        CorruptionError: there is none, or one is damaged, which may have been the newest.
    """
    newest = newest_checkpoint_at(store / CHECKPOINTS)
    if newest is None:
        raise CorruptionError(f"the store {store} has no complete checkpoint")
    return newest


def clear_unfinished(where: Path) -> None:
    """Removes what an interrupted checkpoint, or an interrupted removal of one, left in the directory `where`."""
    for kind in (_STAGED, _REMOVED):
        for left in where.glob(f".*{kind}"):
            _log.info("removing %s, which was left unfinished", left)
            shutil.rmtree(left)


def remove_oldest(where: Path, keep: int) -> list[Path]:
    """Removes all but the newest `keep` checkpoints of the directory `where`; returns those that it removed.

    One that is damaged is neither counted nor removed. Interrupted, it leaves whole checkpoints and what
    `clear_unfinished` removes.

    Raises:
        DamoError: the system refuses.
    """
    sequences, damaged = _read_checkpoints(where)
    for path, error in damaged.items():
        _log.warning("leaving the damaged checkpoint %s alone: %s", path, error)
    oldest_first = sorted(sequences, key=lambda path: sequences[path])
    removed = oldest_first[: max(len(oldest_first) - keep, 0)]
    for path in removed:
        with os_errors(f"cannot remove the checkpoint {path}"):
            hidden = path.with_name(f".{path.name}{_REMOVED}")
            if hidden.exists():  # an interrupted removal of another one of that name
                shutil.rmtree(hidden)
            os.rename(path, hidden)
            shutil.rmtree(hidden)
    return removed


def _read_checkpoints(where: Path) -> tuple[dict[Path, int], dict[Path, CorruptionError]]:
    """Sequence numbers of the checkpoints in the directory `where`, and what is wrong with the others."""
    sequences: dict[Path, int] = {}
    damaged: dict[Path, CorruptionError] = {}
    for path in where.glob("[!.]*"):
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
    candidates = [store / CHECKPOINTS / f"step_{which}"]
    if not isinstance(which, int):
        candidates = [Path(which), store / CHECKPOINTS / which]
    for candidate in candidates:
        if is_checkpoint(candidate):
            return candidate.absolute()
    names = ", ".join(p.name for p in checkpoints_in(store)) or "none"
    raise ValueError(f"the store {store} has no checkpoint {which!r}; it has {names}")
