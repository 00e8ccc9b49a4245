"""Writes a store's checkpoints: in the calling thread, or in one of its own while training goes on."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoint_directory import ROWS, build_checkpoint
from damo_torchrec.manifest import Manifest

_log = logging.getLogger(__name__)


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
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="damo-checkpoint")
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
