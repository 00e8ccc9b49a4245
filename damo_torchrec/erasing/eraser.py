"""`Eraser`: has nothing left of some rows in all places but a store's live rows."""

import glob
import logging
from collections.abc import Mapping
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import clear_unfinished
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.exported import Exported
from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    LIVE,
    PREPARED_LIVE,
    complete_entries,
    unclean_lives,
    unfinished_entries,
)
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import Listed, is_checkpoint, read_directory
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.checkpoints.store_directory import remove_rows
from damo_torchrec.erasing.checkpoint import erase_from_checkpoint
from damo_torchrec.erasing.delta import erase_from_delta, erase_from_deltas, is_delta
from damo_torchrec.erasing.graphs import erase_from_graph
from damo_torchrec.erasing.places import Kept, Places
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Ids, Wanted
from damo_torchrec.erasing.working_copy import is_working_copy, remove_working_copy
from damo_torchrec.errors import CorruptionError, DamoError

_log = logging.getLogger(__name__)


class Eraser:
    """Works through a store's directory and what else it is shown. Nothing of it raises but for wrong paths.

    Args:
        store: its directory, which nobody else works with.
        line: its checkpoints.
        ids: int64, by table.
        numbers: of the live tables, by name; None if there are no live rows but those of the newest checkpoint.
        report: gets what is found and done; with its `dry_run`, nothing is done.

    Raises:
        KeyError: neither live rows nor checkpoints have a table of such a name.
    """

    def __init__(
        self,
        store: Path,
        line: CheckpointLine,
        ids: Mapping[str, Ids],
        numbers: Mapping[str, int] | None,
        report: ForgetReport,
    ) -> None:
        self._store = store
        self._line = line
        self._report = report
        self._listed, self._damaged = read_directory(store / CHECKPOINTS)
        own = [listed for listed in self._listed if self._is_own(listed.origin)]
        if numbers is None:
            newest = own[-1].manifest.tables if own else {}
            numbers = {name: table.number for name, table in newest.items()}
        known = {name for listed in self._listed for name in listed.manifest.tables} | {*numbers}
        if unknown := sorted(ids.keys() - known):
            tables = sorted(known)
            raise KeyError(f"the store {store} and its checkpoints have no table {unknown[0]!r}; there are {tables}")
        self._wanted = Wanted.of(ids, numbers, [listed.manifest for listed in own])
        self._states = {listed.manifest.id for listed in own}
        for listed in own[-1:]:
            try:
                self._states |= {*Lineage.read(listed.path, listed.manifest).ids()}
            except CorruptionError as error:
                _log.warning("what is of the line of %s is told by its checkpoints alone: %s", store, error)

    def _is_own(self, origin: Origin | None) -> bool:
        return origin is None or origin.line == self._line.line

    def _wanted_in(self, origin: Origin | None) -> Wanted:
        return self._wanted if self._is_own(origin) else self._wanted.by_name()

    # ------------------------------------------------------------------ the store's directory

    def erase_checkpoints(self, kept: Kept) -> None:
        """Has nothing left in the checkpoints inside the store."""
        needed = self._needed()
        # The newest at first: should this be ended, the store goes on without the rows.
        for listed in reversed(self._listed):
            remove = kept == "remove" and listed.path not in needed
            erase_from_checkpoint(listed.path, self._wanted_in(listed.origin), self._report, remove=remove)
        for path, error in self._damaged.items():
            if path.is_dir() and any(path.iterdir()):
                reason = f"it is damaged, and may hold them: {error}. Repair it elsewhere, or remove it"
                self._report.leave(path, "checkpoint", reason)

    def _needed(self) -> list[Path]:
        """Those that the store, training and servers go on from."""
        own = [listed for listed in self._listed if self._is_own(listed.origin)]
        outdated = Retention(1).outdated(own)
        exported = self._exported()
        return [listed.path for listed in own if listed not in outdated or listed.path == exported]

    def _exported(self) -> Path | None:
        """What was exported last, to be served, if anything was, and its checkpoint is still there."""
        try:
            noted = Exported.read(self._store)
        except CorruptionError as error:
            _log.warning("nothing tells what was exported last: %s", error)
            return None
        return Path(noted.path) if noted is not None and is_checkpoint(Path(noted.path)) else None

    def remove_left(self, *, closed: bool) -> None:
        """Removes what nobody reads: rows of crashes, unfinished checkpoints, working copies whose server has ended.

        To be done before all else, as they share files with checkpoints. Of a store that is `closed`, live rows are of
        a crash.
        """
        left = [*unclean_lives(self._store), self._store / PREPARED_LIVE]
        for rows in [*left, *([self._store / LIVE] if closed else [])]:
            if is_directory(rows):
                self._remove_rows(rows)
        where = self._store / CHECKPOINTS
        if not self._report.dry_run:
            clear_unfinished(where)
            for path in sorted(unfinished_entries(where)):
                reason = "it may hold them, and is in use or not ours to remove"
                self._report.leave(path, "unfinished checkpoint", reason)
        self._remove_working_copies(where)

    def _remove_working_copies(self, where: Path, of: str = "*") -> None:
        """Of the checkpoints of these names in a directory: servers make them beside."""
        for path in sorted(where.glob(f".{of}.*")):
            if is_working_copy(path):
                remove_working_copy(path, self._wanted, self._report)

    def _remove_rows(self, rows: Path) -> None:
        try:
            if not self._report.dry_run:
                remove_rows(rows)
                _log.warning("removed %s, rows of a crash, which may have had some that are to be forgotten", rows)
            self._report.erased.append(Erased(rows, "rows of a crash", "removed"))
        except (DamoError, OSError) as error:
            self._report.leave(rows, "rows of a crash", f"it may hold them: {error}")

    # ------------------------------------------------------------------ what is shown

    def erase_shown(self, places: Places) -> None:
        """Has nothing left in what the caller shows, and looks at what was exported last, shown or not."""
        seen = {checkpoint for path in places.exports for checkpoint in self._erase_export(path)}
        for path in places.deltas:
            self._erase_deltas(path)
        for path in places.working_copies:
            remove_working_copy(path, self._wanted, self._report)
        self._look_at_exported(seen)

    def _erase_export(self, path: Path) -> list[Path]:
        """Returns the checkpoints that `path` is or has; if there is none it has a graph."""
        checkpoints = [path] if is_checkpoint(path) else []
        if not checkpoints and path.is_dir():
            checkpoints = sorted(entry for entry in complete_entries(path) if is_checkpoint(entry))
        for checkpoint in checkpoints:
            self._remove_working_copies(checkpoint.parent, glob.escape(checkpoint.name))
            erase_from_checkpoint(checkpoint, self._wanted_at(checkpoint), self._report, what="export")
        if not checkpoints:
            erase_from_graph(path, self._wanted.by_name(), self._report)
        return checkpoints

    def _wanted_at(self, checkpoint: Path) -> Wanted:
        try:
            return self._wanted_in(Listed.read(checkpoint).origin)
        except CorruptionError:  # which is found again, and reported
            return self._wanted.by_name()

    def _erase_deltas(self, path: Path) -> None:
        if is_delta(path):
            erase_from_delta(path, self._wanted_of_delta(path), self._report)
            return
        erase_from_deltas(path, self._wanted_of_delta, self._report)

    def _wanted_of_delta(self, path: Path) -> Wanted:
        try:
            manifest = DeltaManifest.read(path)
        except (DamoError, ValueError):
            return self._wanted.by_name()
        return self._wanted if self._states & {manifest.id, *manifest.line} else self._wanted.by_name()

    def _look_at_exported(self, seen: set[Path]) -> None:
        """Reports what was exported last to be served, if it is elsewhere, was not shown, and has the rows."""
        path = self._exported()
        if path is None or path in seen or path.parent == self._store / CHECKPOINTS:
            return
        probe = ForgetReport({}, dry_run=True)
        erase_from_checkpoint(path, self._wanted_at(path), probe, what="export")
        if probe.erased or probe.remaining:
            self._report.leave(path, "export", "servers begin there, but it was not shown: name it among exports")
