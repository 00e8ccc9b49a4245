"""Which checkpoints a directory holds, of whatever line of states, in the order in which they were made."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    MANIFEST_FILE,
    MODEL_FILE,
    ORIGIN_FILE,
    ROWS,
    checkpoint_name,
    checkpoint_suffix,
    complete_entries,
    is_checkpoint_name,
    world_sizes,
)
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A checkpoint in a directory.

    Args:
        path: its own.
        manifest: what it holds.
        origin: None if it does not say: an earlier release made it.
    """

    path: Path
    manifest: Manifest
    origin: Origin | None

    @staticmethod
    def read(path: Path) -> "Listed":
        """The checkpoint `path`. Raises CorruptionError if it is damaged."""
        manifest = Manifest.read(path)
        if ORIGIN_FILE not in manifest.files:
            return Listed(path, manifest, None)
        return Listed(path, manifest, Origin.parse(manifest.read_file(path, ORIGIN_FILE), path / ORIGIN_FILE))

    @property
    def has_dense_part(self) -> bool:
        """Whether `save_model` made it."""
        return MODEL_FILE in self.manifest.files


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a directory that holds a checkpoint, or one that has lost its manifest."""
    # These say no, where Path's own raise, of directories that nobody may look into.
    return os.path.isfile(path / MANIFEST_FILE) or os.path.isdir(path / ROWS)


def check_of_one_process(path: Path) -> None:
    """Raises ValueError if `path` is what several ranks made together: a checkpoint of theirs, or their stores."""
    if sizes := world_sizes(path):
        raise ValueError(
            f"{path} is of several ranks, {sizes[0]} of them: open it with damo_torchrec.distributed.open_store, make "
            "a store of one process of it with damo_torchrec.distributed.gather, or name what one rank has in it"
        )


def free_name(where: Path, step: int | str) -> Path:
    """A new name for a checkpoint at `step`: ``step_N``, or where there are such, the next of ``step_N.1`` and so on.

    What has been removed does not give its name to a newer one, as long as one of that step is there.
    """
    taken = [suffix for path in complete_entries(where) if (suffix := checkpoint_suffix(path.name, step)) is not None]
    return where / checkpoint_name(step, 1 + max(taken, default=-1))


def read_directory(where: Path) -> tuple[list[Listed], dict[Path, CorruptionError]]:
    """The checkpoints in the directory `where`, oldest first, and what is wrong with those that are damaged."""
    listed: list[Listed] = []
    damaged: dict[Path, CorruptionError] = {}
    for path in complete_entries(where):
        if not is_checkpoint_name(path.name) and (path.is_symlink() or not is_checkpoint(path)):
            continue  # of the user's
        try:
            if not is_directory(path):
                raise CorruptionError(f"{path} is no directory, as a checkpoint is")
            listed.append(Listed.read(path))
        except CorruptionError as error:
            if os.path.lexists(path):  # else it has been removed meanwhile
                damaged[path] = error
    return sorted(listed, key=lambda checkpoint: checkpoint.manifest.sequence), damaged


def checkpoints_at(where: Path) -> list[Path]:
    """The complete checkpoints in the directory `where`, oldest first, without those that are damaged."""
    listed, damaged = read_directory(where)
    for path, error in damaged.items():
        _log.warning("passing over the checkpoint %s: %s", path, error)
    return [checkpoint.path for checkpoint in listed]


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoint `path`, or the checkpoints of the store `path`, damaged or not, by name.

    Raises:
        ValueError: it is neither, or of several ranks.
        CorruptionError: the store's checkpoints are behind a symbolic link.
    """
    check_of_one_process(path)
    if is_checkpoint(path):
        return [path]
    if not path.is_dir() or not StoreDirectory.is_store(path):
        raise ValueError(f"{path} is neither a store nor a checkpoint")
    if (path / CHECKPOINTS).is_symlink():
        raise CorruptionError(f"{path / CHECKPOINTS} is a symbolic link, expected a directory of the store")
    entries = complete_entries(path / CHECKPOINTS)
    return sorted(
        entry for entry in entries if is_checkpoint_name(entry.name) or (is_directory(entry) and is_checkpoint(entry))
    )


def has_checkpoints(store: Path) -> bool:
    """Whether the store directory `store` holds a checkpoint, readable or not."""
    entries = complete_entries(store / CHECKPOINTS)
    return any(is_checkpoint_name(path.name) or is_checkpoint(path) for path in entries)
