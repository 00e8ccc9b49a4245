"""`save_model` and `load_model`: a model's dense part and its rows, of one step, in one directory.

The dense part is ``model.pt`` in a checkpoint of the store. It is written into the directory before that gets its
name, so that the two are there together or not at all; and it repeats the checkpoint's id, so that parts of different
checkpoints are never taken for one.
"""

import io
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from damo_torchrec.directory import StoreDirectory, is_checkpoint, newest_checkpoint
from damo_torchrec.errors import CorruptionError, SchemaMismatchError
from damo_torchrec.manifest import Manifest
from damo_torchrec.modules import Collection
from damo_torchrec.store import EmbeddingStore

MODEL_FILE = "model.pt"


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
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a model with its rows, to go on training with `load_model`. Returns the checkpoint's directory.

    Holds the model's state dict, the optimizer's, the states of the random number generators of torch, NumPy and
    Python, and a checkpoint of the store.

    Args:
        model: a module with at least one collection of this package; all of them over one store.
        path: a new directory; None: ``checkpoints/step_N`` inside the store.
        training: must be True.
        optimizer: of the dense parameters, or a `torchrec.optim.CombinedOptimizer` of theirs and the collections'
            `fused_optimizer`, whose learning rates are then saved, too.
        step: what to call this point of the training; the store's step if None.
        extra: more to keep, such as the position in the data: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        ValueError: the model has no collection of this package, or collections over several stores; `path` exists;
            `extra` holds something else.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    if not training:
        raise ValueError("training=False, a model for serving, is not available: save_model keeps training checkpoints")
    store = _store_of(model)

    def add(directory: Path, manifest: Manifest) -> None:
        dense = {
            "checkpoint_id": manifest.id,
            "step": manifest.step if step is None else step,
            "model": _dense_state(model),
            "optimizer": optimizer.state_dict() if optimizer is not None else None,
            "random": _random_state(),
            "extra": dict(extra or {}),
        }
        write_dense(directory, dense)

    return store._checkpoint(path, add)


def load_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """Brings a model, its rows and its optimizer to the state that `save_model` saved. Returns the model.

    The model's store goes back, or forward, to the rows of the checkpoint; what it held otherwise is given up. The
    random number generators continue where they were. `checkpoint_info` reads the rest.

    Args:
        path: a checkpoint, or a store: its newest checkpoint.
        model: made as it was when it was saved.
        optimizer: of the dense parameters, if one was saved.

    Raises:
        ValueError: `path` is no checkpoint, or has no dense part, or no optimizer though one is given.
        CorruptionError: parts of it are of different checkpoints, or damaged.
        SchemaMismatchError: the model or its tables differ from those saved. Neither model nor store was changed.
    """
    path = _resolve(path)
    dense = _read_dense(path)
    if optimizer is not None and dense["optimizer"] is None:
        raise ValueError(f"{path} was saved without an optimizer")
    _check_model(model, dense["model"], path)
    if optimizer is not None:
        _check_optimizer(optimizer, dense["optimizer"], path)
    store = _store_of(model)
    if store._changed or store._pending or store._catalog.manifest.id != dense["checkpoint_id"]:
        store.restore(path)
    own = _own_state(model)
    told = {name: value for name, value in model.state_dict().items() if name in own}
    model.load_state_dict({**told, **dense["model"]})
    if optimizer is not None:
        optimizer.load_state_dict(dense["optimizer"])
    _set_random_state(dense["random"])
    return model


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


def load_dense(path: Path, manifest: Manifest) -> dict[str, Any]:
    """Reads the dense part of the checkpoint `path`.

    Raises:
        CorruptionError: it cannot be read, or is of another checkpoint than `manifest`.
    """
    file = path / MODEL_FILE
    try:
        dense: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        checkpoint_id = dense["checkpoint_id"]
    except Exception as error:  # torch has no one exception for a damaged file
        raise CorruptionError(f"{file} is damaged: {error}") from error
    if checkpoint_id != manifest.id:
        raise CorruptionError(f"{file} belongs to another checkpoint than the rows beside it")
    return dense


def write_dense(path: Path, dense: Mapping[str, Any]) -> None:
    """Writes the dense part of the checkpoint `path`. Raises ValueError if `load_dense` could not read it."""
    buffer = io.BytesIO()  # torch hides the system's errors where it writes a file itself
    try:
        torch.save(dense, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="meta", weights_only=True)
    except Exception as error:
        raise ValueError(
            "extra, or a state dict, holds something that cannot be loaded without pickle: keep to tensors, "
            f"numbers, strings, and lists and dicts of them ({error})"
        ) from error
    (path / MODEL_FILE).write_bytes(buffer.getbuffer())


def _store_of(model: nn.Module) -> EmbeddingStore:
    stores = {m.store for m in model.modules() if isinstance(m, Collection)}
    if len(stores) != 1:
        found = ", ".join(str(store.path) for store in stores) or "none"
        raise ValueError(f"the model's collections must be over one store, found {found}")
    return stores.pop()


def _resolve(path: str | os.PathLike[str]) -> Path:
    resolved = Path(path).absolute()
    if is_checkpoint(resolved):
        return resolved
    if resolved.is_dir() and StoreDirectory.is_store(resolved):
        return newest_checkpoint(resolved)
    raise ValueError(f"{resolved} is neither a checkpoint nor a store")


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


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(words), gauss],
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            cached,
        ],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
