"""Which checkpoints a directory, or a store, holds, and in which order they were made."""

import logging
import os
from pathlib import Path

from damo_torchrec.checkpoints.layout import CHECKPOINTS, MANIFEST_FILE, ROWS, checkpoint_name, complete_entries
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError

_log = logging.getLogger(__name__)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a directory that holds a checkpoint, or one that has lost its manifest."""
    return (path / MANIFEST_FILE).is_file() or (path / ROWS).is_dir()


def free_name(where: Path, step: int) -> Path:
    """A new name for a checkpoint at `step`: ``step_N``, or ``step_N.1`` and so on where that exists."""
    suffix = 0
    while (target := where / checkpoint_name(step, suffix)).exists():
        suffix += 1
    return target


# ------------------------------------------------------------------ of a directory


def read_manifests(where: Path) -> tuple[dict[Path, Manifest], dict[Path, CorruptionError]]:
    """Manifests of the checkpoints in the directory `where`, oldest first, and what is wrong with the others."""
    manifests: dict[Path, Manifest] = {}
    damaged: dict[Path, CorruptionError] = {}
    for path in complete_entries(where):
        if is_checkpoint(path):
            try:
                manifests[path] = Manifest.read(path)
            except CorruptionError as error:
                damaged[path] = error
    return dict(sorted(manifests.items(), key=lambda item: item[1].sequence)), damaged


def checkpoints_at(where: Path) -> list[Path]:
    """The complete checkpoints in the directory `where`, oldest first, without those that are damaged."""
    manifests, damaged = read_manifests(where)
    for path, error in damaged.items():
        _log.warning("passing over the checkpoint %s: %s", path, error)
    return list(manifests)


def newest_checkpoint_at(where: Path) -> Path | None:
    """The newest checkpoint in the directory `where`; None if there is none.

    Raises:
        CorruptionError: one is damaged, which may have been the newest.
    """
    manifests, damaged = read_manifests(where)
    for path, error in damaged.items():
        raise CorruptionError(
            f"{error}. It may be the newest checkpoint: name another one (restore=, load_model), or move {path} away"
        )
    return next(reversed(manifests), None)


# ------------------------------------------------------------------ of a store


def has_checkpoints(store: Path) -> bool:
    """Whether the store directory `store` holds a checkpoint, readable or not."""
    return any(is_checkpoint(path) for path in complete_entries(store / CHECKPOINTS))


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


def find_checkpoint(store: Path, which: str | int | os.PathLike[str] | None) -> Path:
    """The checkpoint that `which` names: ``"latest"``, a step, a name inside the store, or a path.

    Raises:
        ValueError: there is none of that name.
        CorruptionError: there is none at all.
    """
    if which is None or which == "latest":
        return newest_checkpoint(store)
    candidates = [store / CHECKPOINTS / checkpoint_name(str(which))]
    if not isinstance(which, int):
        candidates = [Path(which), store / CHECKPOINTS / which]
    for candidate in candidates:
        if is_checkpoint(candidate):
            return candidate.absolute()
    names = ", ".join(p.name for p in checkpoints_in(store)) or "none"
    raise ValueError(f"the store {store} has no checkpoint {which!r}; it has {names}")


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoint `path`, or the checkpoints of the store `path`, damaged or not, by name.

    Raises:
        ValueError: it is neither.
    """
    if is_checkpoint(path):
        return [path]
    if not path.is_dir() or not StoreDirectory.is_store(path):
        raise ValueError(f"{path} is neither a store nor a checkpoint")
    return sorted(entry for entry in complete_entries(path / CHECKPOINTS) if entry.is_dir())
