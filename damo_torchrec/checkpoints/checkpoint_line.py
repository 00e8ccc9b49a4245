"""The checkpoints of one line of states in a directory: which is newest, and which one a name means."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from damo_torchrec.checkpoints.layout import CHECKPOINTS, checkpoint_name
from damo_torchrec.checkpoints.listing import Listed, is_checkpoint, read_directory
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.errors import CorruptionError

_log = logging.getLogger(__name__)


class CheckpointLine:
    """Tells checkpoints of one line from others in a directory, which a warning names, once a line.

    Args:
        where: the directory; it need not exist.
        line: the id of the line of states.
        with_unknown: whether those that do not say of which line they are, are of this one.
    """

    def __init__(self, where: Path, line: str | None, *, with_unknown: bool = False) -> None:
        self.where = where
        self.line = line
        self._with_unknown = with_unknown
        self._named: set[str | None] = set()

    @staticmethod
    def of_store(store: Path) -> "CheckpointLine":
        """The checkpoints inside the store directory `store`, that it made itself, or earlier releases.

        Raises:
            CorruptionError: nobody can tell which these are.
        """
        where = store / CHECKPOINTS
        if where.is_symlink():
            raise CorruptionError(f"{where} is a symbolic link, expected a directory of the store")
        try:
            origin = Origin.read(store)
        except CorruptionError as error:
            raise CorruptionError(f"{error}. Without the file, the store goes by its newest checkpoint") from error
        if origin is None:  # an earlier release made it, or only its checkpoints were copied
            origin = next((found.origin for found in reversed(read_directory(where)[0]) if found.origin), None)
        return CheckpointLine(where, origin.line if origin else None, with_unknown=True)

    def _has(self, origin: Origin | None) -> bool:
        return self._with_unknown if origin is None else origin.line == self.line

    def read(self) -> tuple[list[Listed], dict[Path, CorruptionError]]:
        """The checkpoints, oldest first, and what is wrong with the damaged ones, which may be of this line."""
        listed, damaged = read_directory(self.where)
        self._name([checkpoint for checkpoint in listed if not self._has(checkpoint.origin)])
        mine = [checkpoint for checkpoint in listed if self._has(checkpoint.origin)]
        return mine, {path: error for path, error in damaged.items() if self._may_have(path)}

    def _may_have(self, damaged: Path) -> bool:
        try:
            origin = Origin.read(damaged)
        except CorruptionError:
            return True
        return origin is None or self._has(origin)

    def _name(self, others: Sequence[Listed]) -> None:
        lines = [(checkpoint.path.name, checkpoint.origin.line if checkpoint.origin else None) for checkpoint in others]
        if new := [name for name, line in lines if line not in self._named]:
            _log.warning(
                "%s holds checkpoints of another line of states (another store made them, or an earlier release): %s. "
                "They are neither counted nor removed, and restored only by name (which=, restore=, load_model)",
                self.where,
                ", ".join(new),
            )
        self._named.update(line for _, line in lines)

    def checkpoints(self) -> list[Listed]:
        """The checkpoints, oldest first, without those that are damaged, which a warning names."""
        listed, damaged = self.read()
        for path, error in damaged.items():
            _log.warning("passing over the checkpoint %s: %s", path, error)
        return listed

    def oldest_first(self) -> list[Listed]:
        """The checkpoints, if all of them can be read.

        Raises:
            CorruptionError: one is damaged, which may have been the newest.
        """
        listed, damaged = self.read()
        for path, error in damaged.items():
            raise CorruptionError(
                f"{error}. It may be the newest checkpoint: name another one (restore=, load_model), or move {path} "
                "away"
            )
        return listed

    def newest(self) -> Path:
        """The newest checkpoint.

        Raises:
            CorruptionError: there is none, or one is damaged, which may have been the newest.
        """
        listed = self.oldest_first()
        if not listed:
            raise CorruptionError(f"{self.where} has no complete checkpoint of its store")
        return listed[-1].path

    def find(self, which: str | int | os.PathLike[str] | None) -> Path:
        """The checkpoint that `which` names: ``"latest"``, a step, a name in the directory, or a path.

        Raises:
            ValueError: there is none of that name.
            CorruptionError: there is none at all.
        """
        if which is None or which == "latest":
            return self.newest()
        candidates = [self.where / checkpoint_name(str(which))]
        if not isinstance(which, int):
            candidates = [Path(which), self.where / which]
        for candidate in candidates:
            if is_checkpoint(candidate):
                return candidate.absolute()
        names = ", ".join(checkpoint.path.name for checkpoint in self.checkpoints()) or "none"
        raise ValueError(f"{self.where} has no checkpoint {which!r}; it has {names}")
