"""Which directories `save_model` replaces, where it is given the path of one that is there."""

import os
from pathlib import Path

from damo_torchrec.checkpoints.in_use import is_in_use
from damo_torchrec.checkpoints.layout import MANIFEST_FILE
from damo_torchrec.checkpoints.listing import Listed, is_checkpoint
from damo_torchrec.checkpoints.origin import NOBODY
from damo_torchrec.errors import CorruptionError


def may_replace(path: Path, line: str | None) -> bool:
    """Whether `save_model` may replace the directory `path`: it is empty, or was saved by it to a path of the caller's.

    Args:
        path: a directory, or something else.
        line: the line of states of the store that is being saved.

    Raises:
        ValueError: it is such a model, but damaged, or of another store, or one is open over it.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            return False
        if not os.listdir(path):
            return True
    except OSError:  # nobody may look into it
        return False
    if not is_checkpoint(path):
        return False
    try:
        saved = Listed.read(path)
    except CorruptionError as error:
        raise ValueError(f"{path} exists already, and is not replaced, as it is damaged: {error}") from error
    if not saved.has_dense_part or (saved.origin is not None and saved.origin.keeper != NOBODY):
        return False
    if saved.origin is None or saved.origin.line != line:
        raise ValueError(f"{path} exists already, and is a model of another store: remove it, or save to another path")
    if is_in_use(path / MANIFEST_FILE):
        raise ValueError(f"{path} exists already, and is not replaced, as a read-only store is open over it")
    return True
