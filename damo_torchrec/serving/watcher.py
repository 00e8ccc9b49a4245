"""Applies deltas that appear in a directory."""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path

from damo_torchrec.errors import DamoError, StoreClosedError
from damo_torchrec.serving.updates import AlreadyAppliedError, OutOfOrderError

_DELTA_FILE = "delta.json"
_log = logging.getLogger(__name__)

# Tells a directory from another one that has its name later.
_Identity = tuple[int, int]


class Watcher:
    """A thread that looks into a directory every so often. One that is refused is logged once.

    Args:
        directory: where deltas appear, whole; names end in their step.
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
        self._done: dict[Path, _Identity] = {}
        self._waiting: dict[Path, tuple[_Identity, int]] = {}  # out of order: with the step that was served then
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="damo-watch", daemon=True)
        self._thread.start()

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

    def _look(self) -> None:
        found = {path: identity for path in self._directory.glob("[!.]*") if (identity := _identity(path)) is not None}
        self._done = {path: identity for path, identity in self._done.items() if path in found}
        self._waiting = {path: waiting for path, waiting in self._waiting.items() if path in found}
        for path in sorted(found, key=_order):
            if self._stopped.is_set():
                return
            identity = found[path]
            if self._done.get(path) != identity and self._waiting.get(path) != (identity, self._step()):
                self._try(path, identity)

    def _try(self, path: Path, identity: _Identity) -> None:
        known = path in self._waiting and self._waiting[path][0] == identity
        try:
            self._apply(path)
            _log.info("applied the delta %s", path)
        except AlreadyAppliedError:
            pass
        except StoreClosedError:
            self._stopped.set()
            return
        except OutOfOrderError as error:
            if error.step > self._step():  # maybe later
                if not known:
                    _log.warning("waiting for what comes before: %s", error)
                self._waiting[path] = identity, self._step()
                return
            _log.info("passing over an old delta: %s", error)
        except (DamoError, ValueError) as error:
            _log.error("refusing the delta %s, and serving step %d on: %s", path, self._step(), error)
        self._waiting.pop(path, None)
        self._done[path] = identity


def _identity(path: Path) -> _Identity | None:
    try:
        status = (path / _DELTA_FILE).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _order(path: Path) -> tuple[int, str]:
    step = re.search(r"(\d+)$", path.name)
    return int(step[1]) if step else -1, path.name
