"""`CheckpointManager`: a training loop's checkpoints, every so often, of which the newest few are kept."""

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.atomic_directory import clear_unfinished
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.listing import free_name, read_directory
from damo_torchrec.checkpoints.origin import MANAGER
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.errors import DamoError
from damo_torchrec.files import os_errors
from damo_torchrec.modules import store_of
from damo_torchrec.store.checkpoint_writer import CheckpointOptions
from damo_torchrec.training.loading import load_model
from damo_torchrec.training.model_checkpoint import CheckpointInfo, checkpoint_info, newest_with_dense_part
from damo_torchrec.training.saving import Parts


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

    The newest checkpoint is the one that was made last, whatever its step. In the directory there may be checkpoints of
    another line of states, which another store made: that of an earlier run, since removed, or of another experiment.
    These are neither counted nor removed, a warning names them, and `restore` loads one of them only by its name, as
    after the loss of a store. What no manager made is not removed either.

    Args:
        directory: where they are, as ``step_N``; made if it does not exist. It may be the ``checkpoints`` directory of
            the store.
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
        self._line: CheckpointLine | None = None  # that of the store of the model that was met last
        self._saving: Future[Path] | None = None

    @property
    def directory(self) -> Path:
        """Where the checkpoints are."""
        return self._directory

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints that `save_model` or a manager made, oldest first.

        Those of the store of the model that was saved or restored last; before that, of any.
        """
        listed = read_directory(self._directory)[0] if self._line is None else self._line.checkpoints()
        return [checkpoint.path for checkpoint in listed if checkpoint.has_dense_part]

    def _line_of(self, model: nn.Module) -> CheckpointLine:
        line = store_of(model).session.catalog.checkpoints.line
        if self._line is None or self._line.line != line:
            self._line = CheckpointLine(self._directory, line)
        return self._line

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
        self._line_of(model)
        part = Parts(optimizer, schedulers, step, extra)
        self._saving = store_of(model).session.checkpoint_async(
            free_name(self._directory, step), CheckpointOptions(part.files(model), keeper=MANAGER)
        )

    def restore(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        which: str | int | os.PathLike[str] | None = None,
        whole_store: bool = False,
        strict: bool = True,
    ) -> CheckpointInfo | None:
        """Loads a checkpoint, with `load_model`, and returns what it says of itself; None if there is none.

        Args:
            model: as of `load_model`.
            optimizer: as of `load_model`.
            schedulers: as of `load_model`.
            which: a step, or a checkpoint's name or path, of whatever store. None: the newest one of the model's store.
            whole_store: as of `load_model`.
            strict: as of `load_model`. What it returns is the `incompatible` of what this returns.

        Raises:
            ValueError: as of `load_model`; there is no such checkpoint.
            CorruptionError: one is damaged, which may have been the newest: move it away to go on from another.
            SchemaMismatchError: as of `load_model`.
        """
        self._finish(wait=True)
        line = self._line_of(model)
        source = newest_with_dense_part(line.oldest_first()) if which is None else line.find(which)
        if source is None:
            return None
        if strict:
            load_model(source, model, optimizer=optimizer, schedulers=schedulers, whole_store=whole_store)
            return checkpoint_info(source)
        incompatible = load_model(
            source, model, optimizer=optimizer, schedulers=schedulers, whole_store=whole_store, strict=False
        )
        return replace(checkpoint_info(source), incompatible=incompatible)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, and raises what it raises."""
        self._finish(wait=True)

    def _finish(self, wait: bool) -> None:
        """Ends a checkpoint that is complete, and removes those that do not stay."""
        if self._saving is None or not (wait or self._saving.done()):
            return
        saving, self._saving = self._saving, None
        written = saving.result()
        if self._line is not None:
            self._retention.apply(self._line, MANAGER, just_written=written)

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
