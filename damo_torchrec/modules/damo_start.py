"""`damo_embedding_init`: Damo-Embedding's start-up."""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.dense_part import load_dense
from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.life import AskedLife, Idle
from damo_torchrec.modules import damo_dicts
from damo_torchrec.modules.damo_numbering import SavedGroups, groups_numbered
from damo_torchrec.modules.embedding import Embedding
from damo_torchrec.modules.wrappers import unwrapped
from damo_torchrec.store.default_store import default_store_at, set_default_store
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.opening import restore_if_saved

_log = logging.getLogger(__name__)

_PathLike = str | os.PathLike[str]
# In the order of 1.1.12, whose service there is none of here.
_BEFORE_1_1_13 = ("ttl", "dir", "reload", "port", "mode", "run_service")
_SINCE_1_1_13 = ("workdir", "ttl")
_NO_EFFECT = ("port", "mode", "run_service")


def damo_embedding_init(model: nn.Module, *args: Any, **kwargs: Any) -> EmbeddingStore:
    """Opens a store, makes it the default one, and puts the rows of a model's Embeddings there.

    As in Damo-Embedding, it comes after the model was made and before it is used. Embeddings without a group get
    theirs: each its place among the model's Embeddings, or what it had in the model that ``reload`` has, by its name
    there. A default store that is open in that directory is used as it is, as where a notebook's cell is run again.

    Args:
        model: its Embeddings without a store get this one.
        args: ``workdir, ttl``; or, where the first is an int, ``ttl, dir, reload``, as in Damo-Embedding up to 1.1.12.
        kwargs: the same by name, and more:
            ``workdir`` or ``dir``: where the store is, new or one that was closed.
            ``reload``: a checkpoint, as of `save_model`, or a store, whose newest one counts: the rows to begin with.
            ``model_dir``: the same beside a ``workdir`` or ``dir``; else another name of these.
            ``ttl``: rows go that have not been updated for so many seconds, as by ``Idle(seconds=ttl)``; 0: never.
            Without it, what the tables have stays in force.
            ``filter``: which ids get rows, as ``{"count": 15, "capacity": 1 << 28, "fpr": 0.001}``: those that were
            seen `count` times, counted exactly. Without it, what the tables have.
            ``port``, ``mode``, ``run_service``: have no effect here, and warn.

    Returns:
        EmbeddingStore: the store; it closes itself when the interpreter ends.

    Raises:
        ValueError: an Embedding has been used already, and has its rows elsewhere; a group that is one's place is given
            to another; there is no directory, or are two; ``reload`` is no checkpoint; or the store is open and has
            changes that no checkpoint has, which ``reload`` would undo.
        TypeError: arguments are not those above.
        DamoError: the store cannot be opened.
    """
    given = _by_name(args, kwargs)
    found = [module for module in model.modules() if isinstance(module, Embedding)]
    workdir, source = _directories(given)
    opened = default_store_at(Path(workdir).absolute())
    asked = _life_asked(given)
    for module in found:
        if module.attached_to is not None and module.attached_to is not opened:
            raise ValueError(f"the Embedding of group {module.group} has its rows in {module.attached_to.path} already")
    _warn_of_others(given)
    awaiting = [module for module in found if module.attached_to is None]
    with groups_numbered(model, _saved_groups(source, model)):
        if opened is not None and source is not None:
            restore_if_saved(opened.session, source)
        store = opened or EmbeddingStore(workdir, restore=source or "latest")
        try:
            for module in found:
                module.ask_life(asked)
            for module in awaiting:
                module.attach_store(store)
        except BaseException:
            for module in awaiting:
                module.detach_store()
            if opened is None:
                store.close()
            raise
    set_default_store(store)
    _log.info("%d embeddings have their rows in %s", len(found), store.path)
    return store


def _saved_groups(source: Path | None, model: nn.Module) -> SavedGroups | None:
    """Those that the model had when it was saved, where rows begin with its, and it has one of their modules."""
    manifest = Manifest.read(source) if source is not None else None
    if source is None or manifest is None or MODEL_FILE not in manifest.files:
        return None
    saved = SavedGroups.of(load_dense(source, manifest).get("learning_rates"), manifest.tables)
    if saved is None:
        return None
    names = [
        name
        for name, module in unwrapped(model).named_modules()
        if isinstance(module, Embedding) and module.has_own_group
    ]
    new = [name for name in names if name not in saved.tables_by_module]
    if len(new) == len(names):
        return None
    if new:
        _log.warning("the model saved in %s has no %s: these begin without rows", source, ", ".join(new))
    return saved


def _by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    before = len(args) > 0 and isinstance(args[0], int)
    names = _BEFORE_1_1_13 if before else _SINCE_1_1_13
    known = {*_BEFORE_1_1_13, *_SINCE_1_1_13, "model_dir", "filter"}
    if len(args) > len(names):
        raise TypeError(f"damo_embedding_init takes model, {', '.join(names)} by their place, got {1 + len(args)}")
    given = dict(zip(names, args, strict=False))
    if twice := sorted(given.keys() & kwargs.keys()):
        raise TypeError(f"damo_embedding_init got {', '.join(twice)} by place and by name")
    if unknown := sorted(kwargs.keys() - known):
        raise TypeError(f"damo_embedding_init has no argument {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return {**given, **kwargs}


def _directories(given: Mapping[str, Any]) -> tuple[_PathLike, Path | None]:
    """Where the rows are to be, and the checkpoint to begin with."""
    paths = {name: given[name] for name in ("workdir", "dir", "model_dir", "reload") if given.get(name)}
    for name, path in paths.items():
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"{name} must be a path, got {path!r}")
    if "workdir" in paths and "dir" in paths:
        raise ValueError("damo_embedding_init takes workdir or dir, which are the same, got both")
    where = paths.get("workdir") or paths.get("dir")
    if where is not None and "model_dir" in paths and "reload" in paths:
        raise ValueError("damo_embedding_init takes the rows to begin with from reload or model_dir, got both")
    if where is None and "model_dir" in paths:
        where = paths.pop("model_dir")
        if is_checkpoint(Path(where)):
            raise ValueError(f"model_dir {where} is a checkpoint, to begin with: say with workdir where rows are to be")
    if where is None:
        raise ValueError("damo_embedding_init needs workdir, the directory of the rows")
    source = paths.get("reload") or paths.get("model_dir")
    return where, _checkpoint_at(Path(source).absolute()) if source else None


def _checkpoint_at(path: Path) -> Path:
    if is_checkpoint(path):
        return path
    if path.is_dir() and StoreDirectory.is_store(path):
        return CheckpointLine.of_store(path).newest()
    raise ValueError(
        f"{path} is neither a checkpoint nor a store: give what save_model made. Rows of Damo-Embedding itself come "
        "here from its dump, by damo-torchrec convert damo-dump"
    )


def _life_asked(given: Mapping[str, Any]) -> AskedLife:
    """What ``ttl`` and ``filter`` ask. Raises TypeError or ValueError for what they cannot be."""
    ttl, counting = given.get("ttl"), given.get("filter")
    admit = damo_dicts.admission(counting) if counting is not None else None
    if ttl is None:
        return AskedLife(admit=admit)
    if isinstance(ttl, bool) or not isinstance(ttl, int | float):
        raise TypeError(f"ttl must be a number of seconds, got {ttl!r}")
    return AskedLife(admit=admit, expire=[Idle(seconds=ttl)] if ttl != 0 else [])


def _warn_of_others(given: Mapping[str, Any]) -> None:
    if others := [name for name in _NO_EFFECT if name in given]:
        warnings.warn(f"damo_embedding_init: {', '.join(others)} has no effect here", stacklevel=3)
