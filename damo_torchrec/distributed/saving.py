"""`save_model` of models on several ranks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from damo_torchrec.checkpoints.atomic_directory import never
from damo_torchrec.checkpoints.layout import CHECKPOINTS, RANKS_FILE
from damo_torchrec.checkpoints.listing import free_name
from damo_torchrec.distributed.commit import NewCheckpoint
from damo_torchrec.distributed.dense import DensePart, Saved
from damo_torchrec.distributed.group import ranks_of_default_group
from damo_torchrec.distributed.group_checkpoint import MANAGER, NOBODY, SAVING, RanksManifest
from damo_torchrec.distributed.models import checked_store_of
from damo_torchrec.distributed.rank_stores import membership_of
from damo_torchrec.distributed.store_checkpoint import begin_checkpoint


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    schedulers: Sequence[LRScheduler] = (),
    step: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Saves a model of several ranks with its rows, to go on with `load_model`. All ranks call it, after the same step.

    The checkpoint appears at once, as rank 0 gives it its name once all ranks have written their parts: each one of
    its store, which shares files by hard links where the file system allows it, and of the dense part what is its own.
    Tensors go through `torch.distributed.checkpoint`: those of data-parallel parameters, which are the same on all
    ranks, once; of TorchRec's other sharded collections each rank's shards.

    Args:
        model: with at least one collection of this package over a store of `open_store`.
        path: a directory that all ranks see: a new one, or one that this made before of the same stores, which is
            replaced. None: ``checkpoints/step_N`` in the directory given to `open_store`, of which
            `StoreOptions.keep_checkpoints` of them stay.
        optimizer: of the dense parameters, or a `torchrec.optim.CombinedOptimizer`.
        schedulers: of learning rates.
        step: what to call this point of the training; the store's step if None.
        extra: more to keep: tensors, numbers, strings, and lists and dicts of them. Each rank gets its own back.

    Returns:
        The checkpoint's directory.

    Raises:
        ValueError: as `damo_torchrec.save_model`; the ranks ask for different paths.
        SchemaMismatchError: the ranks are at different steps.
        OutOfSpaceError, DamoError: the disk of a rank is full or refuses, or a rank has ended; nothing is left behind.
        All of them on all ranks.
    """
    return save_model_async(model, path, optimizer=optimizer, schedulers=schedulers, step=step, extra=extra).result()


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

    The ranks' threads talk to each other by a process group of their own, which training does not use.

    Returns:
        Future: of the checkpoint's directory. Its ``result()`` waits, and raises what a disk refuses, on all ranks.
    """
    return begin_model(model, Saved(optimizer, schedulers, step, extra), path)


def begin_model(
    model: nn.Module,
    saved: Saved,
    path: str | os.PathLike[str] | None = None,
    *,
    managed: bool = False,
    keep: int | None = None,
) -> Future[Path]:
    """What `save_model_async` does; where it is `managed`, a manager keeps the newest `keep`."""
    ranks = ranks_of_default_group()
    ranks.settle()
    store = ranks.each("save the model", lambda: checked_store_of(model, saved.optimizer))
    membership = membership_of(store)
    identity = membership.identity
    asked = ranks.together(
        "save the model", lambda: (saved.step, saved.optimizer is not None, len(saved.schedulers), path is not None)
    )
    if any(one != asked[0] for one in asked):
        raise ValueError(
            "cannot save the model: ranks ask for different things, by rank (step, whether an optimizer is given, "
            f"number of schedulers, whether a path is given): {asked}"
        )
    step = store.step if saved.step is None else saved.step
    keeper, keep = (MANAGER, keep) if managed else (SAVING, membership.keep)
    where = membership.root / CHECKPOINTS
    if path is None:  # rank 0 chooses: the others may not see yet what it has made
        target = Path(ranks.of_first("save the model", lambda: str(free_name(where, step))))
    else:
        target, keeper, keep = Path(path).absolute(), NOBODY, None
    new = NewCheckpoint(
        target,
        identity.group,
        identity.run,
        ranks.world_size,
        keeper=keeper,
        keep=keep,
        may_replace=partial(_may_replace, group=identity.group) if path is not None else never,
    )
    return begin_checkpoint(ranks, store, new, lambda: DensePart(model, saved, step, identity.run))


def _may_replace(path: Path, group: str) -> bool:
    """Whether the directory `path` is empty, or was saved to a path of the caller's, of the same stores."""
    if path.is_symlink() or not path.is_dir():
        return False
    if not os.listdir(path):
        return True
    if not (path / RANKS_FILE).is_file():
        return False
    saved = RanksManifest.read(path)
    if saved.group != group:
        raise ValueError(f"{path} exists already, and is a model of other stores: remove it, or save to another path")
    return saved.dense_ranks > 0 and saved.keeper == NOBODY
