"""Keeps the profile of a store's cache over its sessions."""

import logging
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.cache_profile import CacheProfile
from damo_torchrec.errors import CorruptionError, DamoError

_log = logging.getLogger(__name__)


class ProfileKeeper:
    """What was found out of a store's cache, now and before.

    Args:
        path: the store's directory.
        memory_budget: its, bytes.
        active: whether the store's engine keeps a profile.
        durable: whether the directory is to hold it.
    """

    def __init__(self, path: Path, memory_budget: int, *, active: bool, durable: bool) -> None:
        self._path = path
        self._memory_budget = memory_budget
        self._active = active
        self._durable = durable
        self._earlier: CacheProfile | None = None
        self._told = False  # that the engine's has ended

    def set_up(self, options: _core.StoreOptions) -> None:
        """Has a new engine go on from what there is, at some higher rate: there may be fewer ids by now."""
        options.profile_cache = self._active
        if not self._active:
            return
        try:
            self._earlier = CacheProfile.read(self._path)
        except CorruptionError as error:
            _log.warning("the profile of the store's cache begins anew: %s", error)
            self._earlier = None
        options.profile_shift = max(self._earlier.shift - 1, 0) if self._earlier else 0

    def profile(self, engine: _core.Store) -> CacheProfile | None:
        """As it is now; that of earlier sessions if this one keeps none. Raises CorruptionError."""
        if not self._active:
            return CacheProfile.read(self._path)
        report = engine.cache_profile()
        if report is None:
            if not self._told:
                _log.warning("the profile of the cache of %s has ended: there was no memory for it", self._path)
            self._told = True
            return self._earlier
        return CacheProfile.of(report, self._memory_budget).after(self._earlier)

    def keep(self, engine: _core.Store) -> None:
        """Has the directory hold it. A system that refuses is told of, no more: no row depends on it."""
        if not self._active or not self._durable:
            return
        try:
            profile = self.profile(engine)
            if profile is not None and any(profile.ids):
                profile.write(self._path)
        except DamoError as error:
            _log.warning("the profile of the store's cache is not kept: %s", error)
