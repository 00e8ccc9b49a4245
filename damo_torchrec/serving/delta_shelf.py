"""The deltas of a directory: what publishers put there, and take away."""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import clear_unfinished, remove_directory
from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.folding import fold_deltas
from damo_torchrec.checkpoints.layout import DELTA_FILE
from damo_torchrec.errors import CorruptionError, DamoError, SchemaMismatchError
from damo_torchrec.files import os_errors, sync_directory
from damo_torchrec.serving.publication import Publication, leading_to
from damo_torchrec.serving.published import Published, order_of

_PREFIX = "delta-"
_NAME = re.compile(rf"{_PREFIX}\d{{12}}(\.\d+)?")
_HIDDEN = re.compile(rf"\.({_NAME.pattern})\.abandoned")
_log = logging.getLogger(__name__)


class DeltaShelf:
    """Deltas that publishers have made in a directory. What else is there is left alone.

    A delta is hidden under a name that begins with a dot, which no server looks at.

    Args:
        directory: made, with its parents, if it does not exist.

    Raises:
        DamoError: it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with os_errors(f"cannot make the directory {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, int, int], DeltaManifest] = {}  # by id of the directory: it may be renamed
        self._told: set[Path] = set()

    def clear_unfinished(self) -> None:
        """Removes what a process that was killed left half written, or half removed."""
        clear_unfinished(self.directory)

    def deltas(self) -> list[Path]:
        """Those that servers see, oldest first by their names."""
        return sorted((path for path in self.directory.iterdir() if _is_published(path, _NAME)), key=order_of)

    def read(self) -> list[Published]:
        """All that can be read, hidden ones too, oldest first. A warning names the others, once."""
        found = {}
        for path in self.directory.iterdir():
            if not (_is_published(path, _NAME) or _is_published(path, _HIDDEN)):
                continue
            try:
                status = (path / DELTA_FILE).stat()
                key = path.name.strip("."), status.st_ino, status.st_mtime_ns
                found[key] = Published(path, self._known.get(key) or DeltaManifest.read(path))
            except (DamoError, ValueError, OSError) as error:
                if path not in self._told:
                    _log.warning("leaving the delta %s alone: %s", path, error)
                    self._told.add(path)
        self._known = {key: delta.manifest for key, delta in found.items()}
        return sorted(found.values(), key=lambda delta: delta.order)

    def free_name(self, step: int) -> Path:
        """A path for a delta that leads to a step; with a number behind it where there is one already."""
        target = self.directory / f"{_PREFIX}{step:012}"
        suffix = 0
        while os.path.lexists(target) or os.path.lexists(_hidden(target)):
            suffix += 1
            target = target.with_suffix(f".{suffix}")
        return target

    def settle(self, publication: Publication) -> Publication:
        """Has servers see the live deltas, and none that is abandoned; returns the same with the paths of then."""
        live = {delta.id: self._show(delta) for delta in publication.live}
        for delta in publication.done:
            _log.warning("removing the delta %s: the store went back behind it", delta.path)
            self.remove(delta)
        pending = [self._hide(delta) for delta in publication.pending]
        last = publication.last
        return replace(
            publication, live=[*live.values()], pending=pending, last=None if last is None else live[last.id]
        )

    def fold(self, newest: Path, keep: int) -> None:
        """Has no more than `keep` deltas lead to the newest: the oldest become one, from wherever they lead from.

        Raises:
            OutOfSpaceError, DamoError: the disk is full or refuses.
        """
        seen = [delta for delta in self.read() if not _HIDDEN.fullmatch(delta.path.name)]
        chain = leading_to(next(delta for delta in seen if delta.path == newest), seen)
        covered = [delta for delta in chain if any(other.covers(delta) for other in chain if other is not delta)]
        for delta in covered:
            self.remove(delta)
        chain = [delta for delta in chain if delta not in covered]
        if len(chain) <= keep:
            return
        oldest = chain[: len(chain) - keep // 2]
        target = self.free_name(oldest[-1].manifest.step)
        try:
            fold_deltas([delta.path for delta in oldest], target)
        except (ValueError, CorruptionError, SchemaMismatchError) as error:
            _log.error("more than %d deltas stay in %s, as they cannot be folded: %s", keep, self.directory, error)
            return
        for delta in oldest:
            self.remove(delta)
        self._rename(Published(target, oldest[-1].manifest), oldest[-1].path)  # who published that, has its name

    def _hide(self, delta: Published) -> Published:
        if _HIDDEN.fullmatch(delta.path.name):
            return delta
        _log.warning("hiding the delta %s: the store went back behind it, and the next one leads back", delta.path)
        return self._rename(delta, _hidden(delta.path))

    def _show(self, delta: Published) -> Published:
        hidden = _HIDDEN.fullmatch(delta.path.name)
        return self._rename(delta, delta.path.with_name(hidden[1])) if hidden else delta

    def _rename(self, delta: Published, target: Path) -> Published:
        with os_errors(f"cannot rename the delta {delta.path}"):
            os.rename(delta.path, target)
            sync_directory(self.directory)
        return Published(target, delta.manifest)

    def remove(self, delta: Published) -> None:
        """Removes it. Raises DamoError if the system refuses."""
        remove_directory(delta.path, "delta")


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.abandoned")


def _is_published(path: Path, name: re.Pattern[str]) -> bool:
    """Whether it is a delta by its name and by what is in it, and not a link."""
    return name.fullmatch(path.name) is not None and not path.is_symlink() and os.path.lexists(path / DELTA_FILE)
