"""`save_model`: a model's dense part and its rows into a checkpoint, or for serving into an ONNX file."""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec import pickled_module
from damo_torchrec.checkpoints.dense_part import dump_dense
from damo_torchrec.checkpoints.layout import MODEL_FILE, MODULE_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.modules import store_of
from damo_torchrec.modules.dense_weights import warn_of_nonfinite
from damo_torchrec.store.checkpoint_writer import CheckpointOptions, Files
from damo_torchrec.store.session import Session
from damo_torchrec.training.fitting_optimizer import parameter_names
from damo_torchrec.training.model_checkpoint import check_optimizer, dense_state, learning_rates
from damo_torchrec.training.random_state import random_state
from damo_torchrec.training.replacing import may_replace

_log = logging.getLogger(__name__)


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    training: bool = True,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
    dummy_input: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Sequence[int] | Mapping[int, str]] | None = None,
) -> Path:
    """Saves a model with its rows, to go on training with `load_model`. Returns the checkpoint's directory.

    Holds the model's state dict, those of the optimizer and of learning-rate schedulers, the states of the random
    number generators of torch, NumPy and Python, a checkpoint of the store, and the model's structure as a pickle, if
    it can be pickled.

    Args:
        model: a module with at least one collection of this package; all of them over one store.
        path: a directory: a new one, an empty one, or one that `save_model` of this store saved to a path before, which
            is replaced at once when all is written. None: ``checkpoints/step_N`` inside the store.
        training: False makes an ONNX file for serving instead, as `damo_torchrec.onnx.export` does, which has more
            options: of the arguments below it takes the last four, and returns the file.
        optimizer: of the dense parameters, or a `torchrec.optim.CombinedOptimizer` of theirs and the collections'
            `fused_optimizer`, whose learning rates are then saved, too.
        schedulers: of learning rates; they have a ``state_dict``.
        step: what to call this point of the training; the store's step if None.
        extra: more to keep, such as the position in the data: tensors, numbers, strings, and lists and dicts of them.
        dummy_input: what the model's forward is called with: a tuple, or the only argument.
        input_names: of the inputs that are tensors.
        output_names: of the outputs.
        dynamic_axes: by input, dimensions of any size; the first one always is.

    Raises:
        ValueError: the model has no collection of this package, or collections over several stores; `path` is
            something else, or a store is open over it; `extra` holds something else; the other arguments do not go with
            `training`.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    serving = {
        "dummy_input": dummy_input,
        "input_names": input_names,
        "output_names": output_names,
        "dynamic_axes": dynamic_axes,
    }
    for_training = {"optimizer": optimizer, "schedulers": schedulers or None, "step": step, "extra": extra}
    if odd := [name for name, value in (serving if training else for_training).items() if value is not None]:
        raise ValueError(f"save_model with training={training} takes no {', '.join(odd)}")
    if not training:
        if path is None or dummy_input is None:
            raise ValueError("save_model with training=False needs a path, and dummy_input to trace the model with")
        from damo_torchrec.onnx import export  # needs packages that training does not

        return export(model, serving.pop("dummy_input"), path, **serving)
    part = Parts(optimizer, schedulers, step, extra)
    session = store_of(model).session
    return session.checkpoint(path, _options(session, part.files(model)))


def save_model_async(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Future[Path]:
    """As `save_model`, of everything as it is now, but written by a thread of its own while training goes on.

    `EmbeddingStore.checkpoint_async` tells what waits for it.

    Returns:
        Future: of the checkpoint's directory. Its ``result()`` waits, and raises what the disk refuses.
    """
    part = Parts(optimizer, schedulers, step, extra)
    session = store_of(model).session
    return session.checkpoint_async(path, _options(session, part.files(model)))


def _options(session: Session, files: Files) -> CheckpointOptions:
    return CheckpointOptions(files, may_replace=partial(may_replace, line=session.catalog.checkpoints.line))


@dataclass(frozen=True)
class Parts:
    """What `save_model` puts beside the rows, as it says of its arguments."""

    optimizer: torch.optim.Optimizer | None
    schedulers: Sequence[LRScheduler]
    step: int | None
    extra: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer)

    def files(self, model: nn.Module) -> Files:
        """The files of a checkpoint that hold it, for a manifest."""

        def files(manifest: Manifest) -> dict[str, bytes]:
            warn_of_nonfinite(model, "save_model")
            contents = {}
            unpicklable = None
            try:
                contents[MODULE_FILE] = pickled_module.dump(model)
            except Exception as error:  # of whatever kind: it is the model's own code that pickle meets
                unpicklable = f"{type(error).__name__}: {error}"
                _log.debug("the model's structure is not saved: %s", unpicklable)
            dense = {
                "checkpoint_id": manifest.id,
                "step": manifest.step if self.step is None else self.step,
                "model": dense_state(model),
                "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
                "parameter_names": parameter_names(model, self.optimizer),
                "learning_rates": learning_rates(model),
                "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
                "random": random_state(),
                "extra": dict(self.extra or {}),
                "unpicklable": unpicklable,
            }
            return {**contents, MODEL_FILE: dump_dense(dense)}

        return files
