"""`save_model` and `load_model`: a model's dense part and its rows, of one step, in one directory.

The dense part is ``model.pt`` in a checkpoint of the store. It is written into the directory before that gets its
name, so that the two are there together or not at all; and it repeats the checkpoint's id, so that parts of different
checkpoints are never taken for one.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec import pickled_module
from damo_torchrec.checkpoints.dense_part import dump_dense, load_dense
from damo_torchrec.checkpoints.layout import MODEL_FILE, MODULE_FILE
from damo_torchrec.checkpoints.listing import checkpoints_in, is_checkpoint, newest_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.modules import Collection, store_of
from damo_torchrec.store.checkpoint_writer import Files
from damo_torchrec.training.random_state import random_state, set_random_state

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Args:
        path: its directory.
        store_step: the store's step.
        step: the step given to `save_model`, or the store's.
        extra: what was given to `save_model`.
        rows: number of rows by table.
    """

    path: Path
    store_step: int
    step: int
    extra: dict[str, Any]
    rows: dict[str, int]


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
        path: a new directory; None: ``checkpoints/step_N`` inside the store.
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
        ValueError: the model has no collection of this package, or collections over several stores; `path` exists;
            `extra` holds something else; the other arguments do not go with `training`.
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
    return store_of(model)._checkpoint(path, _files(model, _Parts(optimizer, schedulers, step, extra)))


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
    return store_of(model)._checkpoint_async(path, _files(model, _Parts(optimizer, schedulers, step, extra)))


@dataclass(frozen=True)
class _Parts:
    """What goes into the dense part besides the model."""

    optimizer: torch.optim.Optimizer | None
    schedulers: Sequence[LRScheduler]
    step: int | None
    extra: Mapping[str, Any] | None


def _files(model: nn.Module, parts: _Parts) -> Files:
    def files(manifest: Manifest) -> dict[str, bytes]:
        contents = {}
        unpicklable = None
        try:
            contents[MODULE_FILE] = pickled_module.dump(model)
        except Exception as error:  # of whatever kind: it is the model's own code that pickle meets
            unpicklable = f"{type(error).__name__}: {error}"
            _log.debug("the model's structure is not saved: %s", unpicklable)
        dense = {
            "checkpoint_id": manifest.id,
            "step": manifest.step if parts.step is None else parts.step,
            "model": _dense_state(model),
            "optimizer": parts.optimizer.state_dict() if parts.optimizer is not None else None,
            "schedulers": [scheduler.state_dict() for scheduler in parts.schedulers],
            "random": random_state(),
            "extra": dict(parts.extra or {}),
            "unpicklable": unpicklable,
        }
        return {**contents, MODEL_FILE: dump_dense(dense)}

    return files


def load_model(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    allow_pickle: bool = False,
) -> nn.Module:
    """Brings a model, its rows and its optimizer to the state that `save_model` saved. Returns the model.

    The model's store goes back, or forward, to the rows of the checkpoint; what it held otherwise is given up. The
    random number generators continue where they were. `checkpoint_info` reads the rest.

    Args:
        path: a checkpoint, or a store: the newest of its checkpoints that `save_model` made.
        model: made as it was when it was saved. None: made from the pickle in the checkpoint, over `default_store()`.
        optimizer: of the dense parameters, if one was saved.
        schedulers: as many as were saved, in the same order.
        allow_pickle: whether that pickle may be read. Doing so runs any code that its author put in: only for
            checkpoints that you trust. The classes of the model must be importable.

    Raises:
        ValueError: `path` is no checkpoint, or has no dense part, or no optimizer though one is given; there is no
            model, and pickle is not allowed or cannot make one.
        CorruptionError: parts of it are of different checkpoints, or damaged.
        SchemaMismatchError: the model or its tables differ from those saved. Neither model nor store was changed.
    """
    path = _newest_with_dense_part(_resolve(path), Path(path).absolute())
    if model is None and not allow_pickle:
        raise ValueError(
            "load_model without a model has to read a pickle, which runs any code that its author put in: give it the "
            "model to load into, or, for a checkpoint that you trust, allow_pickle=True"
        )
    dense = _read_dense(path)
    if model is None:
        model = _unpickle(path, dense)
    if optimizer is not None and dense["optimizer"] is None:
        raise ValueError(f"{path} was saved without an optimizer")
    saved_schedulers = dense.get("schedulers", [])
    if schedulers and len(schedulers) != len(saved_schedulers):
        raise ValueError(f"{path} was saved with {len(saved_schedulers)} schedulers, got {len(schedulers)}")
    _check_model(model, dense["model"], path)
    if optimizer is not None:
        _check_optimizer(optimizer, dense["optimizer"], path)
    store = store_of(model)
    store._restore_unless_at(path, dense["checkpoint_id"])
    own = _own_state(model)
    told = {name: value for name, value in model.state_dict().items() if name in own}
    model.load_state_dict({**told, **dense["model"]})
    if optimizer is not None:
        optimizer.load_state_dict(dense["optimizer"])
    for scheduler, state in zip(schedulers, saved_schedulers, strict=False):
        scheduler.load_state_dict(state)
    set_random_state(dense["random"])
    return model


def _unpickle(path: Path, dense: Mapping[str, Any]) -> nn.Module:
    file = path / MODULE_FILE
    if not file.is_file():
        reason = dense.get("unpicklable") or "an earlier release saved it"
        raise ValueError(f"{path} holds no pickle of the model: {reason}. Give load_model a model to load into")
    try:
        return pickled_module.load(file.read_bytes())
    except Exception as error:  # of whatever kind: the pickle runs code of the model's own
        raise ValueError(
            f"the model in {file} cannot be made here ({type(error).__name__}: {error}): import its classes where they "
            "were when it was saved, or give load_model a model to load into"
        ) from error


def checkpoint_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Reads what a checkpoint says of itself, without loading it.

    Args:
        path: a checkpoint, or a store: its newest checkpoint. One without a dense part has an empty `extra`.

    Raises:
        ValueError: `path` is neither.
        CorruptionError: it is damaged.
    """
    path = _resolve(path)
    manifest = Manifest.read(path)
    dense = _read_dense(path) if MODEL_FILE in manifest.files else {}
    return CheckpointInfo(
        path=path,
        store_step=manifest.step,
        step=dense.get("step", manifest.step),
        extra=dense.get("extra", {}),
        rows={name: table.rows for name, table in manifest.tables.items()},
    )


def _resolve(path: str | os.PathLike[str]) -> Path:
    resolved = Path(path).absolute()
    if is_checkpoint(resolved):
        return resolved
    if resolved.is_dir() and StoreDirectory.is_store(resolved):
        return newest_checkpoint(resolved)
    raise ValueError(f"{resolved} is neither a checkpoint nor a store")


def _newest_with_dense_part(newest: Path, store: Path) -> Path:
    """Itself, unless it holds rows only and `store`, which it is the newest of, has an older one with a dense part."""
    if newest == store or MODEL_FILE in Manifest.read(newest).files:
        return newest
    for path in reversed(checkpoints_in(store)):
        if MODEL_FILE in Manifest.read(path).files:
            _log.warning(
                "%s holds rows only, as close() leaves them: going back to %s, which save_model made", newest, path
            )
            return path
    return newest


def _read_dense(path: Path) -> dict[str, Any]:
    manifest = Manifest.read(path)
    if MODEL_FILE not in manifest.files:
        raise ValueError(f"{path} holds rows only: it was made by checkpoint() or close(), not by save_model")
    manifest.check_files(path)
    return load_dense(path, manifest)


def _check_model(model: nn.Module, saved: dict[str, torch.Tensor], path: Path) -> None:
    now, then = _shapes(_dense_state(model)), _shapes(saved)
    if now == then:
        return
    names = sorted(n for n in {*now, *then} if now.get(n) != then.get(n))
    differences = "; ".join(f"{n}: {then.get(n)} saved, {now.get(n)} in the model" for n in names[:5])
    raise SchemaMismatchError(f"the model differs from the one saved in {path}: {differences}")


def _own_state(model: nn.Module) -> set[str]:
    """Names of what collections tell of their store: a checkpoint says that by itself."""
    collections = [name for name, module in model.named_modules() if isinstance(module, Collection)]
    return {f"{name}._extra_state" if name else "_extra_state" for name in collections}


def _dense_state(model: nn.Module) -> dict[str, Any]:
    own = _own_state(model)
    return {name: value for name, value in model.state_dict().items() if name not in own}


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Torch finds out when it has begun to load."""

    def groups(state: dict[str, Any]) -> list[int]:
        return [len(group["params"]) for group in state.get("param_groups", [])]

    then, now = groups(saved), groups(optimizer.state_dict())
    if then != now:
        raise SchemaMismatchError(
            f"the optimizer differs from the one saved in {path}: parameters by parameter group were {then}, are {now}"
        )
