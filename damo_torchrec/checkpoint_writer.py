"""Writes a store's checkpoints: in the calling thread, or in one of its own while training goes on."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoint_directory import ROWS, build_checkpoint
from damo_torchrec.manifest import Manifest

_LEAST_PRIORITY = 19
_log = logging.getLogger(__name__)


def _give_way() -> None:
    """Has the calling thread take processor time that others leave, as far as the system knows that."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)


class CheckpointWriter:
    """One checkpoint at a time. Not thread-safe: the store's mutex guards it."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[Path] | None = None

    def write(
        self,
        engine: _core.Store,
        target: Path,
        link: bool,
        manifest: Manifest,
        files: Mapping[str, bytes],
        ended: Callable[[bool], None],
        background: bool,
    ) -> "Future[Path]":
        """Writes what the engine's `begin_checkpoint` began.

        Args:
            engine: REQUIRES: a checkpoint has begun. It ends here, whatever happens.
            target: a directory that does not exist.
            link: whether files may be shared with the live rows by hard links.
            manifest: of the rows.
            files: more files, by name.
            ended: is told whether it succeeded.
            background: returns at once; else when it is complete, or has failed.
        """

        def fill(staged: Path) -> None:
            linked = engine.write_checkpoint(str(staged / ROWS), link)
            for name, contents in files.items():
                (staged / name).write_bytes(contents)
            manifest.write(staged)
            _log.info("checkpoint %s: files %s", target, "linked" if linked else "copied")

        def write() -> Path:
            succeeded = False
            try:
                build_checkpoint(target, fill)
                succeeded = True
            except Exception:
                if background:
                    _log.exception("the checkpoint %s failed", target)
                raise
            finally:
                engine.abandon_checkpoint()  # if it has not come to the rows
                ended(succeeded)
            return target

        if background:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "damo-checkpoint", initializer=_give_way)
            self._last = self._thread.submit(write)
            return self._last
        done: Future[Path] = Future()
        done.set_result(write())
        return done

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
