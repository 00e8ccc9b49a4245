"""`load_model`: a model, its rows and its optimizer as `save_model` saved them."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec import pickled_module
from damo_torchrec.checkpoints.document import shown
from damo_torchrec.checkpoints.layout import MODULE_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError, DamoError, SchemaMismatchError
from damo_torchrec.modules import store_of, tables_of
from damo_torchrec.store.opening import restore_unless_at
from damo_torchrec.training.model_checkpoint import (
    check_optimizer,
    dense_state,
    learning_rates,
    load_dense_state,
    model_checkpoint_at,
    read_dense,
    set_learning_rates,
)
from damo_torchrec.training.random_state import set_random_state

_log = logging.getLogger(__name__)


def load_model(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    allow_pickle: bool = False,
    whole_store: bool = False,
) -> nn.Module:
    """Brings a model, its rows and its optimizer to the state that `save_model` saved. Returns the model.

    The model's store goes back, or forward, to the rows of the checkpoint; what it held otherwise is given up. Only
    where it is at that checkpoint, but for tables that were dropped, renamed or converted since, it stays as it is. A
    checkpoint holds the whole store: if tables that are not the model's have changed since, it is refused, unless
    `whole_store` says that these go back as well. The random number generators continue where they were.
    `checkpoint_info` reads the rest.

    Args:
        path: of a checkpoint, or of a store: the newest of its checkpoints that `save_model` made.
        model: made as it was when it was saved. None: made from the pickle in the checkpoint, over `default_store()`.
        optimizer: of the dense parameters, if one was saved.
        schedulers: as many as were saved, in the same order.
        allow_pickle: whether that pickle may be read. Doing so runs any code that its author put in: only for
            checkpoints that you trust. The classes of the model must be importable.
        whole_store: whether tables of the store that are not the model's may be replaced and removed, too.

    Raises:
        ValueError: `path` is no checkpoint, or has no dense part, or no optimizer though one is given; there is no
            model, and pickle is not allowed or cannot make one; other tables would be replaced. Nothing was changed.
        CorruptionError: parts of it are of different checkpoints, or damaged.
        SchemaMismatchError: the model or its tables differ from those saved. Neither model nor store was changed.
    """
    path = model_checkpoint_at(path)
    check_optimizer(optimizer)
    if model is None and not allow_pickle:
        raise ValueError(
            "load_model without a model has to read a pickle, which runs any code that its author put in: give it the "
            "model to load into, or, for a checkpoint that you trust, allow_pickle=True"
        )
    dense = read_dense(path)
    if model is None:
        model = _unpickle(path, dense.get("unpicklable"))
    if optimizer is not None and dense["optimizer"] is None:
        raise ValueError(f"{path} was saved without an optimizer")
    saved_schedulers = dense.get("schedulers", [])
    if schedulers and len(schedulers) != len(saved_schedulers):
        raise ValueError(f"{path} was saved with {len(saved_schedulers)} schedulers, got {len(schedulers)}")
    _check_model(model, dense["model"], path)
    if optimizer is not None:
        _check_optimizer(optimizer, dense["optimizer"], path)
    elif dense["optimizer"] is not None and model.training:
        _log.warning("%s was saved with an optimizer, whose state is not loaded: load_model was given none", path)
    for scheduler, state in zip(schedulers, saved_schedulers, strict=False):
        _check_scheduler(scheduler, state, path)
    with _all_or_none(model, optimizer, schedulers):
        with _refused(f"the model cannot take the state dict in {path}"):
            load_dense_state(model, dense["model"])
        if optimizer is not None:
            with _refused(f"the optimizer cannot take its state in {path}"):
                optimizer.load_state_dict(dense["optimizer"])
        set_learning_rates(model, _learning_rates_in(dense, model))
        for scheduler, state in zip(schedulers, saved_schedulers, strict=False):
            with _refused(f"a scheduler cannot take its state in {path}"):
                scheduler.load_state_dict(state)
        restore_unless_at(store_of(model).session, path, None if whole_store else tables_of(model))
    set_random_state(dense["random"])
    return model


def _learning_rates_in(dense: Mapping[str, Any], model: nn.Module) -> dict[str, dict[str, float]]:
    """Those that were saved, by the names that tables have now. Earlier releases saved none."""
    saved = dense.get("learning_rates", {})
    changes = store_of(model).session.tables_changed
    if changes is None or changes.since != dense["checkpoint_id"]:
        return dict(saved)
    return {
        name: {changes.renamed.get(table, table): rate for table, rate in rates.items()}
        for name, rates in saved.items()
    }


@contextmanager
def _all_or_none(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, schedulers: Sequence[LRScheduler]
) -> Iterator[None]:
    """Brings back what they were if what follows fails: rows are restored last, and are so whole or not at all."""
    dense, rates = copy.deepcopy(dense_state(model)), learning_rates(model)
    states = [(part, copy.deepcopy(part.state_dict())) for part in (optimizer, *schedulers) if part is not None]
    try:
        yield
    except BaseException:
        load_dense_state(model, dense)
        set_learning_rates(model, rates)
        for part, state in states:
            part.load_state_dict(state)
        raise


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Has whatever torch raises of a state that fits in its outline alone say which it is."""
    try:
        yield
    except DamoError:
        raise
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # torch has no one exception
        raise SchemaMismatchError(f"{what}: {type(error).__name__}: {error}") from error


def _unpickle(path: Path, unpicklable: str | None) -> nn.Module:
    """The model in a checkpoint's pickle, which runs code: none that its manifest does not name, as it was written."""
    file = path / MODULE_FILE
    manifest = Manifest.read(path)
    if MODULE_FILE not in manifest.files:
        if os.path.lexists(file):
            raise CorruptionError(
                f"{file} is no file of the checkpoint, whose manifest does not name it: it is refused"
            )
        reason = unpicklable or "an earlier release saved it"
        raise ValueError(f"{path} holds no pickle of the model: {reason}. Give load_model a model to load into")
    content = manifest.read_file(path, MODULE_FILE)
    try:
        return pickled_module.load(content)
    except Exception as error:  # of whatever kind: the pickle runs code of the model's own
        raise ValueError(
            f"the model in {file} cannot be made here ({type(error).__name__}: {error}): import its classes where they "
            "were when it was saved, or give load_model a model to load into"
        ) from error


def _check_model(model: nn.Module, saved: dict[str, torch.Tensor], path: Path) -> None:
    now, then = _shapes(dense_state(model)), _shapes(saved)
    if now == then:
        return
    names = sorted(n for n in {*now, *then} if now.get(n) != then.get(n))
    differences = "; ".join(f"{n}: {then.get(n)} saved, {now.get(n)} in the model" for n in names[:5])
    raise SchemaMismatchError(f"the model differs from the one saved in {path}: {differences}")


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...] | str]:
    """Of what is no tensor, that it is none."""
    return {
        name: tuple(value.shape) if isinstance(value, torch.Tensor) else "no tensor"
        for name, value in state_dict.items()
    }


def _check_scheduler(scheduler: LRScheduler, saved: Mapping[str, Any], path: Path) -> None:
    """Whether it can load it: those of torch make each name in it an attribute."""
    if odd := sorted(name for name in saved if name == "optimizer" or callable(getattr(type(scheduler), name, None))):
        raise SchemaMismatchError(f"the scheduler differs from the one saved in {path}: its state has {shown(odd)}")


def _check_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any], path: Path) -> None:
    """Whether the optimizer can load it, which torch finds out when it has begun to."""

    def groups(state: dict[str, Any]) -> list[int]:
        return [len(group["params"]) for group in state.get("param_groups", [])]

    def hyperparameters(state: dict[str, Any]) -> set[str]:
        return {str(name) for group in state.get("param_groups", []) for name in group}

    state = optimizer.state_dict()
    then, now = groups(saved), groups(state)
    if then != now:
        raise SchemaMismatchError(
            f"the optimizer differs from the one saved in {path}: parameters by parameter group were {then}, are {now}"
        )
    had, has = hyperparameters(saved), hyperparameters(state)
    if had - has and has - had:  # another version of torch has more of them, or fewer
        raise SchemaMismatchError(
            f"the optimizer differs from the one saved in {path}, which had {sorted(had - has)}: "
            f"{type(optimizer).__name__} has {sorted(has - had)}"
        )
