"""Applies deltas that appear in a directory."""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.layout import DELTA_FILE, complete_entries
from damo_torchrec.errors import CorruptionError, DamoError, SchemaMismatchError, StoreClosedError
from damo_torchrec.serving.place import Following, Place, following, route
from damo_torchrec.serving.published import Published, order_of
from damo_torchrec.serving.updates import AlreadyAppliedError, OutOfOrderError

_log = logging.getLogger(__name__)

# Inode, size and time of a file, by name: tells a directory from another one of its name, and from itself before.
_Files = dict[str, tuple[int, int, int]]


def _nothing(_: Path) -> None:
    pass


def _nowhere() -> Place:
    return Place(frozenset(), frozenset(), 0, 0)


class Watcher:
    """A thread that looks into a directory every so often, and has applied what leads to the newest delta there.

    A delta that is refused is logged, and tried again if its files change; one that the disk refuses, at each look.
    What is no delta is logged, too. Nothing that is there stops what comes after it.

    Args:
        directory: where deltas appear, whole.
        poll_seconds: between two looks.
        apply: applies one, and raises if it cannot.
        place: of what is served.
    """

    def __init__(
        self, directory: Path, poll_seconds: float, apply: Callable[[Path], None], place: Callable[[], Place]
    ) -> None:
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._apply = apply
        self._place = place
        self._odd: dict[Path, str] = {}  # no deltas, and why
        self._manifests: dict[Path, tuple[_Files, DeltaManifest]] = {}  # with their delta.json
        self._refused: dict[Path, _Files] = {}  # all of their files: it may have been half of them
        self._failed: set[Path] = set()  # the disk refused
        self._reason: str | None = None  # that the log has told
        self.looks = 0  # that have come to their end
        self._stopped = threading.Event()
        self._following = Following(place().step)
        try:
            self._tell_following(self._list())
        except OSError:
            _log.exception("could not look for deltas in %s", directory)
        self._thread = threading.Thread(target=self._run, name="damo-watch", daemon=True)
        self._thread.start()

    @property
    def passed_over(self) -> int:
        """Entries of the directory that are no deltas, or are refused, as of the last look."""
        return len({*self._odd, *self._refused, *self._failed})

    @property
    def following(self) -> Following:
        """How far what is served was behind at the last look."""
        return self._following

    def stop(self) -> None:
        """Has the thread end, without waiting for it."""
        self._stopped.set()

    def join(self) -> None:
        """Waits for its end. REQUIRES: `stop`."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception:
                _log.exception("could not look for deltas in %s", self._directory)
            self._stopped.wait(self._poll_seconds)
        # What these belong to has this watcher: once closed, it is to go without waiting for the garbage collector.
        self._apply, self._place = _nothing, _nowhere

    def _look(self) -> None:
        deltas = self._list()
        passed: set[Path] = set()  # in this look
        while way := route(self._place(), [d for d in deltas if d.path not in self._refused and d.path not in passed]):
            for delta in way:
                if self._stopped.is_set():
                    return
                if not self._try(delta):
                    passed.add(delta.path)
                    break
        self._tell_following(deltas)
        self.looks += 1

    def _list(self) -> list[Published]:
        """The deltas that are there. Of those that were refused and have changed nobody knows any more."""
        found = {path: _oddity(path) for path in complete_entries(self._directory)}
        for path in [path for path, oddity in found.items() if oddity is not None]:
            found[path] = _oddity(path)  # its publisher may have put one in its place meanwhile, or taken it away
            if not os.path.lexists(path):
                del found[path]
        for known in (self._odd, self._manifests, self._refused):
            for gone in known.keys() - found.keys():
                del known[gone]
        self._failed &= found.keys()
        deltas = []
        for path in sorted(found, key=order_of):
            if (oddity := found[path]) is not None:
                self._pass_over(path, oddity)
                continue
            self._odd.pop(path, None)
            if path in self._refused and self._refused[path] != _files(path):
                del self._refused[path]
            if (manifest := self._manifest(path)) is not None:
                deltas.append(Published(path, manifest))
        return deltas

    def _manifest(self, path: Path) -> DeltaManifest | None:
        name = _files(path, [DELTA_FILE])
        if path in self._manifests and self._manifests[path][0] == name:
            return self._manifests[path][1]
        self._manifests.pop(path, None)
        if path in self._refused:
            return None
        files = _files(path)
        try:
            manifest = DeltaManifest.read(path)
        except Exception as error:
            self._note_error(path, files, error)
            return None
        self._manifests[path] = name, manifest
        self._failed.discard(path)
        return manifest

    def _pass_over(self, path: Path, oddity: str) -> None:
        if self._odd.get(path) != oddity:
            _log.warning("passing over %s, which is no delta: %s", _printable(path), oddity)
            self._odd[path] = oddity

    def _try(self, delta: Published) -> bool:
        """Whether it is part of what is served now."""
        files = _files(delta.path)
        try:
            self._apply(delta.path)
        except StoreClosedError:
            self._stopped.set()
            return False
        except AlreadyAppliedError:
            pass
        except OutOfOrderError:  # somebody else has applied one meanwhile
            return False
        except Exception as error:
            if delta.path.is_dir():  # else its publisher has taken it away
                self._note_error(delta.path, files, error)
            return False
        self._failed.discard(delta.path)
        return delta.id in self._place().past

    def _note_error(self, path: Path, files: _Files, error: Exception) -> None:
        temporary = isinstance(error, DamoError | OSError) and not isinstance(
            error, CorruptionError | SchemaMismatchError
        )
        if not temporary and _files(path) != files:
            _log.info("reading the delta %s again, which has changed meanwhile", _printable(path))
        elif not temporary:
            self._refuse(path, files, error)
        elif path not in self._failed:
            _log.error("could not apply the delta %s, and will try again: %s", _printable(path), _printable(error))
            self._failed.add(path)

    def _tell_following(self, deltas: Sequence[Published]) -> None:
        refused = {*self._refused, *self._failed}
        usable = [delta for delta in deltas if delta.path not in refused]
        others = [delta for delta in deltas if delta.path in refused]
        self._following = following(self._place(), usable, others, len(refused) - len(others))
        if (reason := self._following.reason) != self._reason:
            if reason is not None:
                _log.error("waiting for what comes before, or for a new export: %s (in %s)", reason, self._directory)
            else:
                _log.info("following the deltas in %s again", self._directory)
            self._reason = reason

    def _refuse(self, path: Path, files: _Files, error: Exception) -> None:
        expected = isinstance(error, DamoError | ValueError)
        what = "refusing the delta %s, and serving step %d on: %s"
        _log.error(what, _printable(path), self._place().step, _printable(error), exc_info=not expected)
        self._refused[path] = files
        self._failed.discard(path)


def _printable(value: object) -> str:
    """Its text; names of files may have bytes that no log takes."""
    return str(value).encode(errors="backslashreplace").decode()


def _oddity(path: Path) -> str | None:
    """Why an entry of the directory is no delta; None if it looks like one."""
    try:
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            return "it is a link" if stat.S_ISLNK(mode) else f"it is no directory, but {stat.filemode(mode)}"
        (path / DELTA_FILE).lstat()
    except FileNotFoundError:
        return f"it has no {DELTA_FILE}"
    except OSError as error:
        return _printable(error)
    return None


def _files(path: Path, names: Sequence[str] | None = None) -> _Files:
    files = {}
    with contextlib.suppress(OSError):  # it has gone
        for name in os.listdir(path) if names is None else names:
            status = (path / name).stat()
            files[name] = status.st_ino, status.st_size, status.st_mtime_ns
    return files
