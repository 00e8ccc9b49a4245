"""`CheckpointManager` of several ranks: a training loop's checkpoints, every so often, of which the newest stay."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.layout import CHECKPOINTS
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.distributed.dense import Saved
from damo_torchrec.distributed.group_checkpoint import oldest_first
from damo_torchrec.distributed.loading import load_model
from damo_torchrec.distributed.models import store_of
from damo_torchrec.distributed.rank_stores import membership_of
from damo_torchrec.distributed.saving import begin_model
from damo_torchrec.errors import DamoError
from damo_torchrec.training.model_checkpoint import CheckpointInfo


class CheckpointManager:
    """Saves a model of several ranks every so many steps, and removes all but the newest checkpoints.

    Each rank has one, and all make its calls. Checkpoints are written by threads of their own while training goes on,
    one at a time; each is whole before an older one goes.

    Args:
        model: that is saved, over a store of `open_store`.
        every_steps: how many calls of `step` there are from one checkpoint to the next.
        keep: how many stay; None for all of them. The newest with a dense part always does.

    Raises:
        ValueError: one of the numbers is not positive, or the model has no such store.
    """

    def __init__(self, model: nn.Module, *, every_steps: int, keep: int | None = None) -> None:
        if type(every_steps) is not int or every_steps < 1:
            raise ValueError(f"every_steps must be a positive int, got {every_steps!r}")
        self._keep = Retention(keep).keep
        self._model = model
        self._every_steps = every_steps
        self._membership = membership_of(store_of(model))
        self._steps = 0
        self._saving: Future[Path] | None = None

    @property
    def directory(self) -> Path:
        """Where the checkpoints are: ``checkpoints`` in the directory given to `open_store`."""
        return self._membership.root / CHECKPOINTS

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints of these stores there that `save_model` or a manager made, oldest first."""
        listed = oldest_first(self.directory, self._membership.identity.group)
        return [path for path, manifest in listed if manifest.dense_ranks > 0]

    def step(
        self,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """To be called after each step of training. Begins a checkpoint if one is due, and returns whether it did.

        It waits for the one before, if that is still being written: all ranks have to begin at the same step.

        Args:
            step: what to call this point of the training; `restore` gives it back.
            optimizer: as of `save_model`.
            schedulers: as of `save_model`.
            extra: as of `save_model`.

        Raises:
            OutOfSpaceError, DamoError: the checkpoint before could not be written; the next is tried when it is due.
        """
        self._steps += 1
        if self._steps < self._every_steps:
            return False
        self.save(step, optimizer=optimizer, schedulers=schedulers, extra=extra)
        return True

    def save(
        self,
        step: int,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Begins a checkpoint now, after the one that is being written. Arguments and errors as of `step`."""
        self.wait()
        self._steps = 0
        saved = Saved(optimizer, schedulers, step, extra)
        self._saving = begin_model(self._model, saved, managed=True, keep=self._keep)

    def restore(
        self,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        schedulers: Sequence[LRScheduler] = (),
        which: str | int | os.PathLike[str] | None = None,
        whole_store: bool = False,
        strict: bool = True,
    ) -> CheckpointInfo | None:
        """Loads a checkpoint, with `load_model`, and returns what it says of itself; None if there is none."""
        self.wait()
        return load_model(
            self._model, which, optimizer=optimizer, schedulers=schedulers, whole_store=whole_store, strict=strict
        )

    def wait(self) -> None:
        """Waits for the checkpoint that is being written, and raises what it raises."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except DamoError:
            if error is None:  # else what happened first is what there is to say
                raise
