"""`load_model` of models on several ranks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.layout import CHECKPOINTS
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.distributed.dense import read_others, read_states
from damo_torchrec.distributed.group import ranks_of_default_group
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint, find, oldest_first
from damo_torchrec.distributed.models import checked_store_of, tables_of
from damo_torchrec.distributed.rank_stores import Membership, membership_of
from damo_torchrec.distributed.starting_point import check_world_size
from damo_torchrec.distributed.store_checkpoint import note_state
from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.opening import restore, restore_unless_at, tables_changed_since
from damo_torchrec.store.tables_changed import TablesChanged
from damo_torchrec.training.dense_parts import NOT_STRICT, DenseParts
from damo_torchrec.training.fitting import IncompatibleKeys
from damo_torchrec.training.model_checkpoint import CheckpointInfo, dense_state
from damo_torchrec.training.random_state import set_random_state

_log = logging.getLogger(__name__)


def load_model(
    model: nn.Module,
    path: str | int | os.PathLike[str] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    whole_store: bool = False,
    strict: bool = True,
) -> CheckpointInfo | None:
    """Brings a model of several ranks to what `save_model` of this module saved. All ranks call it.

    The stores go to the rows of the checkpoint, where they are not at it already, as after `open_store`; what they
    held otherwise is given up. Where they are at it but for tables that were dropped, renamed or converted since, on
    all ranks, they stay as they are.

    ``strict=False`` is for a model that has changed since, as of `damo_torchrec.load_model`: what fits by name and
    shape is loaded, and what does not stays as it is. All ranks find the same, or all raise.

    Args:
        model: as it was saved, over a store of `open_store`.
        path: of a checkpoint of as many ranks; or its step or name among those in the directory given to `open_store`.
            None: the newest of these that `save_model` made.
        optimizer: of the dense parameters, if one was saved.
        schedulers: as many as were saved, in the same order.
        whole_store: whether tables of the store that are not the model's may be replaced and removed, too.
        strict: whether the model, its tables and its optimizer must be those that were saved.

    Returns:
        What the checkpoint says of itself, with this rank's `extra` and the rows of all ranks; with ``strict=False``
        its `incompatible` is what did not go together. None if `path` is None and there is none.

    Raises:
        ValueError: there is no such checkpoint, or it holds rows only; tables were dropped, renamed or converted since,
            and on some ranks nothing else was done; as `damo_torchrec.load_model`.
        SchemaMismatchError: the model, its tables or its optimizer differ from those saved; with ``strict=False`` if
            ranks differ in what does, or a table's dim, optimizer or row dtype does.
        CorruptionError: parts of it are missing, damaged, or of different checkpoints.
        DamoError: it is of another number of ranks; a rank has ended.
        All of them on all ranks, where neither model nor store was changed.
    """
    ranks = ranks_of_default_group()
    ranks.settle()
    store = ranks.each("load the model", lambda: checked_store_of(model, optimizer))
    membership = membership_of(store)
    chosen = ranks.of_first("find the checkpoint to load", lambda: _choose(membership, path))
    if chosen is None:
        return None
    loading = _Loading(model, store, membership, Path(chosen))
    parts = DenseParts(model, optimizer, schedulers)
    states = ranks.each(f"load {chosen}", lambda: loading.read(parts, strict=strict))
    if not strict:
        loading.check_alike()
    loading.check_changes()
    loading.apply(parts, states, None if whole_store else tables_of(model))
    return loading.info(states)


def _choose(membership: Membership, path: str | int | os.PathLike[str] | None) -> str | None:
    where = membership.root / CHECKPOINTS
    if path is not None:
        return str(find(where, path))
    listed = oldest_first(where, membership.identity.group)
    trained = [found for found in listed if found[1].dense_ranks > 0]
    if listed and trained and trained[-1] != listed[-1] and listed[-1][1].step > trained[-1][1].step:
        _log.warning(
            "%s holds rows only, as closing the stores leaves them: going back to %s, which save_model made",
            listed[-1][0],
            trained[-1][0],
        )
    return str(trained[-1][0]) if trained else None


class _Loading:
    """One call of `load_model`."""

    def __init__(self, model: nn.Module, store: EmbeddingStore, membership: Membership, path: Path) -> None:
        self._model = model
        self._store = store
        self._ranks = membership.ranks
        self._path = path
        self._checkpoint: RanksCheckpoint | None = None
        self._found: IncompatibleKeys | None = None  # where not all has to fit
        self._changes: TablesChanged | None = None

    @property
    def checkpoint(self) -> RanksCheckpoint:
        """That is loaded. REQUIRES: `read`."""
        assert self._checkpoint is not None, "read has read it"
        return self._checkpoint

    def read(self, parts: DenseParts, *, strict: bool) -> dict[str, Any]:
        """The states that the checkpoint has for the parts, which fit, or what of them does. Changes nothing."""
        self._checkpoint = RanksCheckpoint.read(self._path)
        check_world_size(self._checkpoint, self._ranks.world_size)
        others = read_others(self._checkpoint, self._ranks.rank)
        if parts.optimizer is not None and others["optimizer"] is None:
            raise ValueError(f"{self._path} was saved without an optimizer")
        if parts.optimizer is None and others["optimizer"] is not None and self._model.training:
            _log.warning("%s was saved with an optimizer, whose state is not loaded: none is given", self._path)
        if parts.schedulers and len(parts.schedulers) != len(others["schedulers"]):
            raise ValueError(
                f"{self._path} was saved with {len(others['schedulers'])} schedulers, got {len(parts.schedulers)}"
            )
        part = self._checkpoint.part(self._ranks.rank)
        self._changes = tables_changed_since(self._store.session, Manifest.read(part).id)
        saved, tables = set(self._checkpoint.parts[0].tables), tables_of(self._model)
        if self._changes is not None:
            saved = {self._changes.renamed.get(table, table) for table in saved}
            others["learning_rates"] = self._changes.renames(others["learning_rates"])
        missing = sorted(tables - saved)
        if missing and strict:
            raise SchemaMismatchError(
                f"the model differs from the one saved in {self._path}: no tables {missing}. {NOT_STRICT}"
            )
        optimizer = parts.optimizer.state_dict() if parts.optimizer is not None else None
        now = {"model": dense_state(self._model), "optimizer": optimizer}
        states = read_states(self._checkpoint, others, now)
        if strict:
            parts.check(states, self._path)
            return states
        states, self._found = parts.fitting(states, self._path)
        self._found.missing_tables, self._found.unexpected_tables = missing, sorted(saved - tables)
        for names in vars(self._found).values():
            if isinstance(names, list):
                names.sort()  # as ranks do not name parameters in one order
        return states

    def check_alike(self) -> None:
        """Raises SchemaMismatchError on all ranks if they differ in what does not fit. REQUIRES: `read`, not strict."""
        found = self._ranks.together(f"load {self._path}", lambda: self._found)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise SchemaMismatchError(
                    f"ranks differ in what of {self._path} goes with their models: for rank 0 what does not is "
                    f"{found[0]}, for rank {rank} {other}"
                )
        _log.info("what of %s does not go with the model: %s", self._path, self._found)

    def check_changes(self) -> None:
        """Raises ValueError on all ranks if rows are to stay on some of them only. REQUIRES: `read`."""
        stay = self._ranks.together(f"load {self._path}", lambda: self._rows_stay)
        if len(set(stay)) > 1:
            raise ValueError(
                f"cannot load {self._path}: since then tables were dropped, renamed or converted, and nothing else was "
                f"done, on the ranks {[rank for rank, stays in enumerate(stay) if stays]} of {len(stay)} alone. Change "
                "tables on all ranks, or go back to it by store.restore on all ranks first"
            )

    @property
    def _rows_stay(self) -> bool:
        return self._changes is not None and self._changes.some

    def apply(self, parts: DenseParts, states: dict[str, Any], tables: set[str] | None) -> None:
        """Loads all of it, on all ranks or on none."""
        session, part = self._store.session, self.checkpoint.part(self._ranks.rank)
        before: list[Path] = []

        def load() -> None:
            if self._rows_stay:
                parts.load(states, self._path)
                restore_unless_at(session, part, tables)  # says that they stay
                return
            if session.changed or session.catalog.manifest.id != Manifest.read(part).id:
                before.append(session.newest_if_unchanged() or session.checkpoint())
            parts.load(states, self._path)
            restore_unless_at(session, part, tables)
            note_state(self._store, self.checkpoint.manifest.id)

        with parts.all_or_none():
            try:
                self._ranks.together(f"load {self._path}", load)
            except BaseException:
                if before and not self._store.closed:
                    restore(session, before[0])
                raise
        random = states["random"]
        if self._ranks.rank < self.checkpoint.manifest.dense_ranks:
            set_random_state(random)
        else:
            _log.info("rank %d was not there when %s was saved: its generators stay", self._ranks.rank, self._path)

    def info(self, states: dict[str, Any]) -> CheckpointInfo:
        """What the checkpoint says of itself."""
        parts = self.checkpoint.parts
        return CheckpointInfo(
            path=self._path,
            store_step=self.checkpoint.manifest.step,
            step=states["step"],
            extra=states["extra"],
            rows={name: sum(part.tables[name].rows for part in parts) for name in parts[0].tables},
            incompatible=self._found,
        )
