"""`Places`: what the caller shows of where rows may be besides the store's directory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from damo_torchrec.checkpoints.store_directory import StoreDirectory

Kept: TypeAlias = Literal["rewrite", "remove"]
Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def paths_of(paths: Paths) -> list[Path]:
    """The paths that an argument names: one or several."""
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [Path(path).absolute() for path in several]


@dataclass(frozen=True)
class Places:
    """What is looked through besides the store's directory, and what becomes of its checkpoints.

    Args:
        checkpoints: of the store that have rows which are to be forgotten: they are written anew without, or go. The
            newest, the newest of `save_model` and what was exported last are written anew whatever this says.
        exports: exported graphs, checkpoints, and directories of checkpoints.
        deltas: deltas, and directories of deltas.
        working_copies: of servers.

    Raises:
        ValueError: there is no such choice; one of the paths is not there, or something else.
    """

    checkpoints: Kept = "rewrite"
    exports: Sequence[Path] = ()
    deltas: Sequence[Path] = ()
    working_copies: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if self.checkpoints not in get_args(Kept):
            raise ValueError(f"checkpoints must be one of {get_args(Kept)}, got {self.checkpoints!r}")
        for path in (*self.exports, *self.deltas, *self.working_copies):
            if not path.exists():
                raise ValueError(f"{path} does not exist")
        for path in self.exports:
            if StoreDirectory.is_store(path):
                raise ValueError(f"{path} is a store, or a working copy, and no export: forget the rows of it as such")
        for path in self.deltas:
            if not path.is_dir():
                raise ValueError(f"{path} is neither a delta nor a directory of deltas")
        for path in self.working_copies:
            if not StoreDirectory.is_store(path):
                raise ValueError(f"{path} is no working copy")
