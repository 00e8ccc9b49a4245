"""Applies deltas that appear in a directory."""

import contextlib
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from damo_torchrec.checkpoints.layout import DELTA_FILE, complete_entries
from damo_torchrec.errors import CorruptionError, DamoError, SchemaMismatchError, StoreClosedError
from damo_torchrec.serving.updates import AlreadyAppliedError, OutOfOrderError

_log = logging.getLogger(__name__)

# Inode, size and time of a file, by name: tells a directory from another one of its name, and from itself before.
_Files = dict[str, tuple[int, int, int]]


def _nothing(_: Path) -> None:
    pass


def _never() -> int:
    return 0


class Watcher:
    """A thread that looks into a directory every so often.

    A delta that is refused is logged, and tried again if its files change; one that the disk refuses, at each look.
    What is no delta is logged, too. Nothing that is there stops what comes after it.

    Args:
        directory: where deltas appear, whole; the numbers in their names say in which order.
        poll_seconds: between two looks.
        apply: applies one, and raises if it cannot.
        step: of what is served.
    """

    def __init__(
        self, directory: Path, poll_seconds: float, apply: Callable[[Path], None], step: Callable[[], int]
    ) -> None:
        self._directory = directory
        self._poll_seconds = poll_seconds
        self._apply = apply
        self._step = step
        self._odd: dict[Path, str] = {}  # no deltas, and why
        self._done: dict[Path, _Files] = {}  # their delta.json
        self._refused: dict[Path, _Files] = {}  # all of their files: it may have been half of them
        self._failed: dict[Path, _Files] = {}
        self._waiting: dict[Path, tuple[_Files, int]] = {}  # out of order: with the step that was served then
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="damo-watch", daemon=True)
        self._thread.start()

    @property
    def passed_over(self) -> int:
        """Entries of the directory that are no deltas, or are refused, as of the last look."""
        return len({*self._odd, *self._refused, *self._failed})

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
        self._apply, self._step = _nothing, _never

    def _look(self) -> None:
        found = {path: _oddity(path) for path in complete_entries(self._directory)}
        for known in (self._odd, self._done, self._refused, self._failed, self._waiting):
            for gone in known.keys() - found.keys():
                del known[gone]
        for path in sorted(found, key=order_of):
            if self._stopped.is_set():
                return
            if (oddity := found[path]) is not None:
                self._pass_over(path, oddity)
            elif self._done.get(path) != (name := _files(path, [DELTA_FILE])):
                self._odd.pop(path, None)
                files = _files(path)
                if self._refused.get(path) != files and self._waiting.get(path) != (name, self._step()):
                    self._try(path, name, files)

    def _pass_over(self, path: Path, oddity: str) -> None:
        if self._odd.get(path) != oddity:
            _log.warning("passing over %s, which is no delta: %s", _printable(path), oddity)
            self._odd[path] = oddity

    def _try(self, path: Path, name: _Files, files: _Files) -> None:
        known = path in self._waiting and self._waiting[path][0] == name
        try:
            self._apply(path)
        except AlreadyAppliedError:
            pass
        except StoreClosedError:
            self._stopped.set()
            return
        except OutOfOrderError as error:
            if error.step > self._step():  # maybe later
                if not known:
                    _log.warning("waiting for what comes before: %s", _printable(error))
                self._waiting[path] = name, self._step()
                return
            _log.info("passing over an old delta: %s", _printable(error))
        except (DamoError, OSError) as error:
            if isinstance(error, CorruptionError | SchemaMismatchError):
                self._refuse(path, files, error)
            elif path not in self._failed:
                _log.error("could not apply the delta %s, and will try again: %s", _printable(path), _printable(error))
                self._failed[path] = files
            return
        except Exception as error:
            self._refuse(path, files, error)
            return
        self._done[path] = name
        self._refused.pop(path, None)
        self._failed.pop(path, None)

    def _refuse(self, path: Path, files: _Files, error: Exception) -> None:
        expected = isinstance(error, DamoError | ValueError)
        what = "refusing the delta %s, and serving step %d on: %s"
        _log.error(what, _printable(path), self._step(), _printable(error), exc_info=not expected)
        self._refused[path] = files
        self._failed.pop(path, None)


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


def order_of(path: Path) -> list[int]:
    """What deltas are sorted by: the numbers in their names."""
    return [int(number) for number in re.findall(r"\d+", path.name)]
