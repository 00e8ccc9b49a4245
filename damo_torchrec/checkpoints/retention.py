"""Which checkpoints of a directory stay, and the removal of the others."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import remove_directory
from damo_torchrec.checkpoints.listing import read_manifests

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest ones. One that is damaged is neither counted nor removed.

    Args:
        keep: how many; None for all of them.

    Raises:
        ValueError: `keep` is not positive.
    """

    keep: int | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and not self.keep > 0:
            raise ValueError(f"keep must be positive, got {self.keep}")

    def outdated(self, oldest_first: Sequence[Path]) -> Sequence[Path]:
        """Those of the checkpoints that do not stay."""
        return [] if self.keep is None else oldest_first[: -self.keep]

    def apply(self, where: Path) -> Sequence[Path]:
        """Removes the checkpoints of the directory `where` that do not stay; returns them.

        Interrupted, it leaves whole checkpoints and what `clear_unfinished` removes.

        Raises:
            DamoError: the system refuses.
        """
        if self.keep is None:
            return []
        manifests, damaged = read_manifests(where)
        for path, error in damaged.items():
            _log.warning("leaving the damaged checkpoint %s alone: %s", path, error)
        removed = self.outdated(list(manifests))
        for path in removed:
            remove_directory(path, "checkpoint")
            _log.info("removed the checkpoint %s: the newest %d are kept", path, self.keep)
        return removed
