"""Tells that a store comes near to its `disk_budget`. What is refused beyond it, the engine refuses."""

import logging
from pathlib import Path

from damo_torchrec import _core

_log = logging.getLogger(__name__)
_NEAR = 0.9


class DiskLimit:
    """Warns when a store's files are at 90 % of what they may take, and again once they were below that.

    Args:
        path: the store's.
        limit: bytes; 0 for no limit.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._near = False

    def tell(self, engine: _core.Store) -> None:
        """Warns if it is time to. Cheap: it goes by what the engine has measured."""
        if not self._limit:
            return
        was_near, used = self._near, engine.disk_used
        self._near = used >= _NEAR * self._limit
        if self._near and not was_near:
            _log.warning(
                "the files in %s take %d bytes, %.0f %% of disk_budget: beyond it, new rows and checkpoints are "
                "refused with OutOfSpaceError",
                self._path,
                used,
                100 * used / self._limit,
            )
