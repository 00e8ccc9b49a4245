"""`load_model`: a model, its rows and its optimizer as `save_model` saved them."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec import pickled_module
from damo_torchrec.checkpoints.layout import MODULE_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError, SchemaMismatchError
from damo_torchrec.modules import SavedGroups, groups_numbered, store_of, tables_of
from damo_torchrec.store.opening import restore_unless_at, tables_changed_since
from damo_torchrec.training.dense_parts import NOT_STRICT, DenseParts
from damo_torchrec.training.fitting import IncompatibleKeys
from damo_torchrec.training.model_checkpoint import check_optimizer, model_checkpoint_at, read_dense
from damo_torchrec.training.random_state import set_random_state

_log = logging.getLogger(__name__)


@overload
def load_model(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    allow_pickle: bool = False,
    whole_store: bool = False,
    strict: Literal[True] = True,
) -> nn.Module: ...


@overload
def load_model(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    whole_store: bool = False,
    strict: Literal[False],
) -> IncompatibleKeys: ...


def load_model(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    allow_pickle: bool = False,
    whole_store: bool = False,
    strict: bool = True,
) -> nn.Module | IncompatibleKeys:
    """Brings a model, its rows and its optimizer to the state that `save_model` saved. Returns the model.

    The model's store goes back, or forward, to the rows of the checkpoint; what it held otherwise is given up. Only
    where it is at that checkpoint, but for tables that were dropped, renamed or converted since, it stays as it is. A
    checkpoint holds the whole store: if tables that are not the model's have changed since, it is refused, unless
    `whole_store` says that these go back as well. The random number generators continue where they were.
    `checkpoint_info` reads the rest.

    ``strict=False`` is for a model that has changed since, by a feature more or less: what fits by name and shape is
    loaded, of the dense part, of its optimizer and schedulers, and the rows of all tables; what does not stays as it
    is in the model. Tables that the model has no more stay in the store.

    Args:
        path: of a checkpoint, or of a store: the newest of its checkpoints that `save_model` made.
        model: made as it was when it was saved. An `Embedding` without a group has the group that the module of its
            name in the model had, which counts more than one that it has by its place. None: made from the pickle in
            the checkpoint, over `default_store()`.
        optimizer: of the dense parameters, if one was saved.
        schedulers: as many as were saved, in the same order.
        allow_pickle: whether that pickle may be read. Doing so runs any code that its author put in: only for
            checkpoints that you trust. The classes of the model must be importable.
        whole_store: whether tables of the store that are not the model's may be replaced and removed, too.
        strict: whether the model, its tables and its optimizer must be those that were saved.

    Returns:
        The model; with ``strict=False`` what did not go together, an `IncompatibleKeys`.

    Raises:
        ValueError: `path` is no checkpoint, or has no dense part, or no optimizer though one is given; there is no
            model, and pickle is not allowed or cannot make one; other tables would be replaced. Nothing was changed.
        CorruptionError: parts of it are of different checkpoints, or damaged.
        SchemaMismatchError: the model or its tables differ from those saved; also with ``strict=False`` if a table's
            dim, optimizer or row dtype does. Neither model nor store was changed.
    """
    path = model_checkpoint_at(path)
    check_optimizer(optimizer)
    if model is None and not strict:
        raise ValueError("load_model with strict=False needs a model: the one that it would make is the one saved")
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
    if optimizer is None and dense["optimizer"] is not None and model.training:
        _log.warning("%s was saved with an optimizer, whose state is not loaded: load_model was given none", path)
    parts = DenseParts(model, optimizer, schedulers)
    states = {"learning_rates": {}, **dense, "schedulers": saved_schedulers}  # earlier releases saved no rates
    saved = SavedGroups.of(dense.get("learning_rates"), Manifest.read(path).tables)
    with groups_numbered(model, saved):
        found = _load(parts, states, path, saved, whole_store=whole_store, strict=strict)
    set_random_state(dense["random"])
    return model if strict else found


def _load(
    parts: DenseParts, states: dict[str, Any], path: Path, saved: SavedGroups | None, *, whole_store: bool, strict: bool
) -> IncompatibleKeys:
    """Loads the states and the rows of a checkpoint, all of it or none. Returns what does not go with the model."""
    model, found = parts.model, IncompatibleKeys()
    store = store_of(model)
    changes = tables_changed_since(store.session, states["checkpoint_id"])
    names: Mapping[str, str] = {}
    if changes is not None:
        names, states["learning_rates"] = changes.renamed, changes.renames(states["learning_rates"])
    if strict:
        parts.check(states, path)
        _check_tables(model, path, names, saved)
    else:
        states, found = parts.fitting(states, path)
        found.missing_tables, found.unexpected_tables = _other_tables(model, path, names)
        _log.info("what of %s does not go with the model: %s", path, found)
    with parts.all_or_none():
        parts.load(states, path)
        restore_unless_at(store.session, path, None if whole_store else tables_of(model))
    return found


def _other_tables(model: nn.Module, path: Path, names: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The model's tables that a checkpoint lacks, and those that it has and the model has not."""
    saved, now = {names.get(table, table) for table in Manifest.read(path).tables}, tables_of(model)
    return sorted(now - saved), sorted(saved - now)


def _check_tables(model: nn.Module, path: Path, names: Mapping[str, str], saved: SavedGroups | None) -> None:
    missing, _ = _other_tables(model, path, names)
    if missing:
        raise SchemaMismatchError(
            f"the model differs from the one saved in {path}, which has no tables {missing}: {NOT_STRICT}"
        )
    groups = {names.get(table, table) for table in saved.tables()} if saved is not None else set()
    if lost := sorted(groups - tables_of(model)):
        raise SchemaMismatchError(
            f"the model differs from the one saved in {path}, whose Embeddings had tables {lost}, too: {NOT_STRICT}"
        )


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
