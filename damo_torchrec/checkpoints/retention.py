"""Which checkpoints of a directory stay, and the removal of the others."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import remove_directory
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.in_use import is_in_use
from damo_torchrec.checkpoints.layout import MANIFEST_FILE
from damo_torchrec.checkpoints.listing import Listed

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest ones, and the newest with a dense part, without which no training goes on.

    What is damaged, of another line of states or of another keeper is neither counted nor removed.

    Args:
        keep: how many; None for all of them.

    Raises:
        TypeError: `keep` is no int.
        ValueError: `keep` is not positive.
    """

    keep: int | None = None

    def __post_init__(self) -> None:
        if self.keep is None:
            return
        if isinstance(self.keep, bool) or not isinstance(self.keep, int):
            raise TypeError(f"keep must be an int or None, got {self.keep!r}")
        if self.keep < 1:
            raise ValueError(f"keep must be positive, got {self.keep}")

    def outdated(self, oldest_first: Sequence[Listed]) -> Sequence[Listed]:
        """Those of the checkpoints that do not stay."""
        if self.keep is None:
            return []
        trained = [checkpoint.path for checkpoint in oldest_first if checkpoint.has_dense_part]
        return [checkpoint for checkpoint in oldest_first[: -self.keep] if checkpoint.path not in trained[-1:]]

    def outdated_of(self, line: CheckpointLine, keeper: str) -> Sequence[Listed]:
        """Those of the checkpoints of `line` that `keeper` may remove and that do not stay."""
        if self.keep is None:
            return []
        listed, damaged = line.read()
        for path, error in damaged.items():
            _log.warning("leaving the damaged checkpoint %s alone: %s", path, error)
        return self.outdated(
            [checkpoint for checkpoint in listed if checkpoint.origin and checkpoint.origin.keeper == keeper]
        )

    def apply(self, line: CheckpointLine, keeper: str, just_written: Path | None = None) -> list[Path]:
        """Removes the checkpoints of `line` that `keeper` may remove and that do not stay; returns them.

        Interrupted, it leaves whole checkpoints and what `clear_unfinished` removes.

        Args:
            line: where they are.
            keeper: one of origin.py's.
            just_written: stays in any case.

        Raises:
            DamoError: the system refuses.
        """
        removed = []
        for checkpoint in self.outdated_of(line, keeper):
            if checkpoint.path == just_written:
                continue
            if is_in_use(checkpoint.path / MANIFEST_FILE):
                _log.info("leaving the checkpoint %s for now: a read-only store is open over it", checkpoint.path)
                continue
            remove_directory(checkpoint.path, "checkpoint")
            _log.info("removed the checkpoint %s: the newest %d of %s's stay", checkpoint.path, self.keep, keeper)
            removed.append(checkpoint.path)
        return removed
