"""Work on a thread of its own, which a signal that comes as it begins or is waited for leaves whole.

`threading.Thread.start` and the waits of `concurrent.futures` are Python code that holds a condition's lock: what a
signal handler raises there may come out as a RuntimeError, and leave the lock in another's hands.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

_BEGINS_WITHIN = 5.0  # seconds

# Those whose end is to be waited for.
_running: set[Job] = set()


class Job:
    """A thread of its own for one call."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._unfinished = threading.Lock()
        self._unfinished.acquire()

    def start(self, work: Callable[[], None]) -> None:
        """Calls `work`, which does not raise, there.

        Raises:
            RuntimeError: there can be no more threads, since the system refuses or the interpreter is ending, or there
                is no memory for one to begin. It may still call `work` later.
        """
        begun = threading.Lock()
        begun.acquire()

        def run() -> None:
            try:
                self._thread = threading.get_ident()
                begun.release()
                work()
            finally:
                self._thread = None
                _running.discard(self)
                self._unfinished.release()

        _running.add(self)
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:
            _running.discard(self)
            self._unfinished.release()
            raise
        # Without memory for its first frame a thread ends without a word.
        if not begun.acquire(timeout=_BEGINS_WITHIN):
            _running.discard(self)
            raise RuntimeError(f"a thread has not begun within {_BEGINS_WITHIN:.0f} s: there may be no memory for it")

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the one that works."""
        return self._thread == threading.get_ident()

    def wait(self) -> None:
        """Waits until the call has returned. REQUIRES: `start` was called, and no interrupt ended that."""
        with self._unfinished:
            pass


def wait_for_all() -> None:
    """Waits for every job, as `threading` does for its threads when the interpreter ends."""
    for job in list(_running):
        job.wait()


class Written(Future[Path]):
    """The future of what a job writes. It cannot be cancelled: rows wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()
        self._unfinished = threading.Lock()
        self._unfinished.acquire()
        self.add_done_callback(lambda _: self._unfinished.release())

    def wait(self) -> None:
        """Waits until it is done, whether it has failed or not."""
        with self._unfinished:
            pass

    def result(self, timeout: float | None = None) -> Path:
        """As any future's."""
        if timeout is None:
            self.wait()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As any future's."""
        if timeout is None:
            self.wait()
        return super().exception(timeout)
