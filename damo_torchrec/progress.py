"""How far an operation of some seconds is: told to a callback, or shown by a bar where stderr is a terminal."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

# Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)

_SHOWN_AFTER = 1.0  # seconds: what takes less needs no bar
_SHOWN_EVERY = 0.1
_MEASURED_EVERY = 0.2
_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} [{elapsed}<{remaining}]"


class ProgressBar:
    """A `Progress` that draws a bar on stderr where that is a terminal, and nothing elsewhere.

    What a terminal that is gone cannot draw is left out. Usable as a context manager, which takes the bar away.

    Args:
        enabled: False for nothing on terminals, either.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr is not None and sys.stderr.isatty()
        self._shown = False
        self._what = ""
        self._began = 0.0
        self._drawn = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Draws how far it is, in the place of what was drawn before."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        if self._enabled and now - self._began >= _SHOWN_AFTER and now - self._drawn >= _SHOWN_EVERY:
            self._drawn = now
            self._print(_drawing(what, done, total, now - self._began))
            self._shown = True

    def clear(self) -> None:
        """Takes the bar away, so that others can print."""
        if self._shown:
            self._print("")
            self._shown = False

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


def _drawing(what: str, done: int, total: int, seconds: float) -> str:
    width = shutil.get_terminal_size().columns - 1
    room = width // 2
    if len(what) > room:  # a long path, whose end tells more
        what = f"{what[: room // 4]}...{what[-(room - room // 4 - 3) :]}"
    return tqdm.format_meter(
        done,
        total,
        seconds,
        ncols=width,
        prefix=what,
        ascii=not str(sys.stderr.encoding).lower().startswith("utf"),
        unit_scale=True,
        bar_format=_FORMAT,
    )


@contextmanager
def reporting(progress: Progress | bool) -> Iterator[Progress]:
    """Gives what is to be told how far an operation is, for as long as that lasts.

    Args:
        progress: who wants to know. What it raises ends nothing: it is logged, and nothing more is told. True for a
            `ProgressBar`, False for nobody.
    """
    if not isinstance(progress, bool):
        yield _Careful(progress)
    elif progress:
        with ProgressBar() as bar:
            yield bar
    else:
        yield _tell_nobody


def _tell_nobody(what: str, done: int, total: int) -> None:
    pass


class _Careful:
    """A `Progress` that tells another one, until that raises."""

    def __init__(self, progress: Progress) -> None:
        self._progress: Progress | None = progress

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            return
        try:
            self._progress(what, done, total)
        except Exception:
            self._progress = None
            _log.exception("the progress callback failed, and is called no more for this operation")


def counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """A function that is told of more and more, and tells `progress` how much that is of `total`."""
    done = 0

    def add(n: int) -> None:
        nonlocal done
        done += n
        progress(what, min(done, total), total)

    return add


@contextmanager
def watching(progress: Progress, what: str, total: int, measure: Callable[[], int]) -> Iterator[None]:
    """Tells `progress`, from a thread of its own, what `measure` returns while one long call is under way.

    Where there can be no more threads, as at the end of the interpreter, nothing is told.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_MEASURED_EVERY):
            progress(what, min(measure(), total), total)

    thread = threading.Thread(target=watch, name="damo_torchrec-progress", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        yield
        return
    try:
        yield
    finally:
        over.set()
        thread.join()
