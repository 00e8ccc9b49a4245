"""`CheckpointManager`: a training loop's checkpoints, every so often, of which the newest few are kept."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.atomic_directory import clear_unfinished
from damo_torchrec.checkpoints.listing import checkpoints_at, free_name, newest_checkpoint_at
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.errors import DamoError
from damo_torchrec.files import os_errors
from damo_torchrec.training.loading import load_model
from damo_torchrec.training.model_checkpoint import CheckpointInfo, checkpoint_info
from damo_torchrec.training.saving import save_model_async


class CheckpointManager:
    """Saves a model every so many steps or seconds, and removes all but the newest checkpoints.

    ::

        manager = damo.CheckpointManager("run/checkpoints", every_steps=1000, keep=3)
        found = manager.restore(model, optimizer=optimizer)
        first = found.step + 1 if found else 0
        with manager:
            for step in range(first, steps):
                ...  # one step of training
                manager.step(model, step, optimizer=optimizer)

    Checkpoints are written by a thread of their own while training goes on, one at a time. Usable as a context manager:
    leaving it waits for the one under way.

    Args:
        directory: where they are, as ``step_N``; made if it does not exist. One process at a time uses it.
        every_steps: how many calls of `step` there are from one checkpoint to the next.
        every_seconds: the least time between the beginnings of two checkpoints. With `every_steps` too, whichever comes
            first.
        keep: how many checkpoints stay; None for all of them. A new one is complete before an older one goes.

    Raises:
        ValueError: neither `every_steps` nor `every_seconds` is given, or one of the numbers is not positive.
        DamoError: the directory cannot be made.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int | None = None,
    ) -> None:
        if every_steps is None and every_seconds is None:
            raise ValueError("a CheckpointManager needs every_steps, every_seconds or both")
        for name, value in (("every_steps", every_steps), ("every_seconds", every_seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._retention = Retention(keep)
        self._directory = Path(directory).absolute()
        with os_errors(f"cannot make the directory {self._directory}"):
            self._directory.mkdir(parents=True, exist_ok=True)
        clear_unfinished(self._directory)
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._steps = 0
        self._last = time.monotonic()
        self._saving: Future[Path] | None = None

    @property
    def directory(self) -> Path:
        """Where the checkpoints are."""
        return self._directory

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return checkpoints_at(self._directory)

    def step(
        self,
        model: nn.Module,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """To be called after each step of training. Begins a checkpoint if one is due, and returns whether it did.

        If the one before is still being written, the next one waits until a later call.

        Args:
            model: as of `save_model`.
            step: what to call this point of the training; `restore` gives it back.
            optimizer: as of `save_model`.
            schedulers: as of `save_model`.
            extra: as of `save_model`.

        Raises:
            ValueError: as of `save_model`.
            OutOfSpaceError, DamoError: the checkpoint before could not be written; the next is tried when it is due.
        """
        self._steps += 1
        self._finish(wait=False)
        by_steps = self._every_steps is not None and self._steps >= self._every_steps
        by_time = self._every_seconds is not None and time.monotonic() - self._last >= self._every_seconds
        if self._saving is not None or not (by_steps or by_time):
            return False
        self.save(model, step, optimizer=optimizer, schedulers=schedulers, extra=extra)
        return True

    def save(
        self,
        model: nn.Module,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins a checkpoint now, after the one that is being written. Arguments and errors as of `step`."""
        self._finish(wait=True)
        self._steps = 0
        self._last = time.monotonic()
        target = free_name(self._directory, step)
        self._saving = save_model_async(
            model, target, optimizer=optimizer, schedulers=schedulers, step=step, extra=extra
        )

    def restore(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
    ) -> CheckpointInfo | None:
        """Loads the newest checkpoint, with `load_model`, and returns what it says of itself; None if there is none.

        Raises:
            CorruptionError: one is damaged, which may have been the newest: move it away to go on from another.
        """
        self._finish(wait=True)
        newest = newest_checkpoint_at(self._directory)
        if newest is None:
            return None
        load_model(newest, model, optimizer=optimizer, schedulers=schedulers)
        return checkpoint_info(newest)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, and raises what it raises."""
        self._finish(wait=True)

    def _finish(self, wait: bool) -> None:
        """Ends a checkpoint that is complete, and removes those that do not stay."""
        if self._saving is None or not (wait or self._saving.done()):
            return
        saving, self._saving = self._saving, None
        saving.result()
        self._retention.apply(self._directory)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except DamoError:
            if error is None:  # else what happened first is what there is to say
                raise
