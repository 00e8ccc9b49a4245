"""A thread for checkpoints that are written while training goes on."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_LEAST_PRIORITY = 19


def _give_way() -> None:
    """Has the calling thread take processor time that others leave, as far as the system knows that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)


class CheckpointWriter:
    """The thread that writes a store's checkpoints while training goes on, one at a time.

    Not thread-safe: the store's mutex guards it.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[Path] | None = None

    def begin(self, write: Callable[[], Path]) -> "Future[Path]":
        """Has the thread call `write`. REQUIRES: the one before has ended."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "damo-checkpoint", initializer=_give_way)
        self._last = self._thread.submit(write)
        return self._last

    def wait(self) -> None:
        """Waits until no checkpoint is being written. Whether one failed is for those who asked for it."""
        if self._last is not None:
            self._last.exception()
            self._last = None

    def close(self) -> None:
        """Waits, and ends the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
