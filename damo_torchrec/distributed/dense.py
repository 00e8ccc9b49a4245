"""The dense part of a model on several ranks: its tensors through `torch.distributed.checkpoint`, the rest in a file.

The tensors of data-parallel parameters are the same on all ranks, and written once; of TorchRec's sharded collections
each rank writes its shards. All that is no tensor is a file of each rank, with what names the tensors in its place.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.dense_part import dump_dense, parse_dense
from damo_torchrec.checkpoints.layout import DENSE_DIRECTORY, dense_file
from damo_torchrec.distributed.dense_reader import DenseReader
from damo_torchrec.distributed.group import Ranks
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import write_file
from damo_torchrec.modules.dense_weights import warn_of_nonfinite
from damo_torchrec.training.fitting_optimizer import parameter_names
from damo_torchrec.training.model_checkpoint import dense_state, learning_rates
from damo_torchrec.training.random_state import random_state

_log = logging.getLogger(__name__)

# In the place of a tensor: what it is called among the others.
_NAME, _SHAPE, _DTYPE = "tensor", "shape", "dtype"
_MARK = {_NAME, _SHAPE, _DTYPE}
_PARTS = ("model", "optimizer")


@dataclass(frozen=True)
class Saved:
    """What is saved of a model beside its rows, as `save_model` says of its arguments."""

    optimizer: torch.optim.Optimizer | None
    schedulers: Sequence[LRScheduler]
    step: int | None
    extra: Mapping[str, Any] | None


class DensePart:
    """A dense part as it is now. What changes from here on is not in it.

    Args:
        model: whose.
        saved: what else is saved of it.
        step: what this point of the training is called.
        checkpoint_id: what it is of.

    Raises:
        ValueError: it holds what cannot be saved.
    """

    def __init__(self, model: nn.Module, saved: Saved, step: int, checkpoint_id: str) -> None:
        warn_of_nonfinite(model, "save_model")
        self._tensors: dict[str, torch.Tensor] = {}
        optimizer = saved.optimizer.state_dict() if saved.optimizer is not None else None
        self._others = dump_dense(
            {
                "checkpoint_id": checkpoint_id,
                "step": step,
                "model": _take(dense_state(model), "model", self._tensors),
                "optimizer": _take(optimizer, "optimizer", self._tensors),
                "parameter_names": parameter_names(model, saved.optimizer),
                "learning_rates": learning_rates(model),
                "schedulers": [scheduler.state_dict() for scheduler in saved.schedulers],
                "random": random_state(),
                "extra": dict(saved.extra or {}),
                "unpicklable": "a model on several ranks is saved without its structure",
            }
        )

    def write(self, directory: Path, ranks: Ranks) -> None:
        """Writes it into an unfinished checkpoint; all ranks do."""
        with _without_groups_warning():
            save(
                self._tensors,
                storage_writer=FileSystemWriter(directory / DENSE_DIRECTORY),
                process_group=ranks.group,
                no_dist=ranks.group is None,
            )
        file = directory / dense_file(ranks.rank)
        write_file(file, self._others)
        with file.open("rb") as written:
            os.fsync(written.fileno())  # here: rank 0 may be on another machine


@contextmanager
def _without_groups_warning() -> Iterator[None]:
    """Without torch's warning that no process group is used, where that is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _take(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The value with marks in the place of tensors, which go to `tensors`, copied."""
    if isinstance(value, torch.Tensor):
        if name in tensors:
            raise ValueError(f"two tensors of the dense part have the name {name}")
        tensors[name] = _copied(value)
        return {_NAME: name, _SHAPE: list(value.shape), _DTYPE: str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {key: _take(item, f"{name}.{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_take(item, f"{name}.{i}", tensors) for i, item in enumerate(value)])
    return value


def _copied(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, where it is whole; sharded ones copy their shards."""
    return value.detach().cpu().clone() if _is_plain(value) else copy.deepcopy(value)


def _is_plain(value: torch.Tensor) -> bool:
    return not hasattr(value, "local_shards") and not hasattr(value, "to_local")


def read_others(checkpoint: RanksCheckpoint, rank: int) -> dict[str, Any]:
    """What there is of a dense part but tensors, as of a rank, or of the one that has its number modulo theirs.

    Raises:
        ValueError: the checkpoint holds rows only.
        CorruptionError: it is damaged.
    """
    if not checkpoint.has_dense_part:
        raise ValueError(f"{checkpoint.path} holds rows only: it was not made by save_model")
    name = dense_file(rank % checkpoint.manifest.dense_ranks)
    if name not in checkpoint.manifest.files:
        raise CorruptionError(f"{checkpoint.path} is damaged: it does not name {name}")
    file = checkpoint.path / name
    return parse_dense(checkpoint.manifest.files[name].read(file), file)


def read_states(checkpoint: RanksCheckpoint, others: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """A dense part with its tensors.

    Args:
        checkpoint: whose.
        others: what `read_others` has read.
        now: state dicts, by ``"model"`` and ``"optimizer"``: tensors that are sharded there are read so.

    Raises:
        CorruptionError: it is damaged.
        ValueError: torch refuses.
    """
    checkpoint.check_dense_files()
    sharded: dict[str, torch.Tensor] = {}
    for part in _PARTS:
        _find_sharded(now.get(part), part, sharded)
    tensors: dict[str, torch.Tensor] = {}
    states = {part: _place(others[part], sharded, tensors) for part in _PARTS}
    if tensors:
        reader = DenseReader(checkpoint.path, checkpoint.manifest.files.keys())
        try:
            with _without_groups_warning():
                load(tensors, storage_reader=reader, no_dist=True)
        except Exception as error:  # torch has no one exception
            raise CorruptionError(f"torch cannot read {checkpoint.path / DENSE_DIRECTORY}: {error}") from error
    return {**others, **states}


def _find_sharded(value: Any, name: str, sharded: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        if not _is_plain(value):
            sharded[name] = value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _find_sharded(item, f"{name}.{key}", sharded)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _find_sharded(item, f"{name}.{i}", sharded)


def _place(value: Any, sharded: Mapping[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> Any:
    """The value with new tensors in the place of marks, which go to `tensors`, to be filled."""
    if isinstance(value, Mapping):
        if value.keys() == _MARK:
            name = value[_NAME]
            like = sharded.get(name)
            if like is not None and list(like.shape) != value[_SHAPE]:
                like = None  # of another shape now
            dtype = getattr(torch, value[_DTYPE])
            tensors[name] = copy.deepcopy(like) if like is not None else torch.zeros(value[_SHAPE], dtype=dtype)
            return tensors[name]
        return {key: _place(item, sharded, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_place(item, sharded, tensors) for item in value])
    return value
