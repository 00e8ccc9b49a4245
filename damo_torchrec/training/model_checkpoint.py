"""A model in a checkpoint: its dense part and its rows, of one step, in one directory.

The dense part is ``model.pt`` in a checkpoint of the store. It is written into the directory before that gets its
name, so that the two are there together or not at all; and it repeats the checkpoint's id, so that parts of different
checkpoints are never taken for one.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.dense_part import load_dense
from damo_torchrec.checkpoints.layout import MODEL_FILE
from damo_torchrec.checkpoints.listing import Listed, check_of_one_process, is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.html_table import html_table
from damo_torchrec.modules.fused_optimizer import FusedTableOptimizer
from damo_torchrec.modules.state import Description
from damo_torchrec.modules.wrappers import unwrapped
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.training.fitting import IncompatibleKeys

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
        incompatible: what did not go together, where `CheckpointManager.restore`, or `load_model` of
            `damo_torchrec.distributed`, loaded it with ``strict=False``.
    """

    path: Path
    store_step: int
    step: int
    extra: dict[str, Any]
    rows: dict[str, int]
    incompatible: IncompatibleKeys | None = None

    def _repr_html_(self) -> str:
        rows = [("step", self.step), ("store's step", self.store_step), *self.extra.items()]
        return html_table(rows, caption=str(self.path)) + html_table(self.rows.items(), ("table", "rows"))


def checkpoint_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Reads what a checkpoint says of itself, without loading it.

    Args:
        path: a checkpoint, or a store: its newest checkpoint. One without a dense part has an empty `extra`.

    Raises:
        ValueError: `path` is neither, or of several ranks.
        CorruptionError: it is damaged.
    """
    path = checkpoint_at(path)
    manifest = Manifest.read(path)
    dense = read_dense(path) if MODEL_FILE in manifest.files else {}
    return CheckpointInfo(
        path=path,
        store_step=manifest.step,
        step=dense.get("step", manifest.step),
        extra=dense.get("extra", {}),
        rows={name: table.rows for name, table in manifest.tables.items()},
    )


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """Itself, or the newest checkpoint of the store `path`. Raises ValueError if it is neither."""
    resolved = Path(path).absolute()
    check_of_one_process(resolved)
    if is_checkpoint(resolved):
        return resolved
    if resolved.is_dir() and StoreDirectory.is_store(resolved):
        return CheckpointLine.of_store(resolved).newest()
    raise ValueError(f"{resolved} is neither a checkpoint nor a store")


def model_checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """As `checkpoint_at`, but of a store the newest checkpoint that `save_model` made, if one did."""
    if isinstance(path, EmbeddingStore):
        raise TypeError(f"path must be that of a checkpoint or of a store, got a store: give its path, {path.path}")
    newest = checkpoint_at(path)
    if is_checkpoint(Path(path)):
        return newest
    return newest_with_dense_part(CheckpointLine.of_store(Path(path).absolute()).oldest_first()) or newest


def check_optimizer(optimizer: object) -> None:
    """Raises TypeError for what is neither an optimizer nor None."""
    if optimizer is not None and not (hasattr(optimizer, "state_dict") and hasattr(optimizer, "load_state_dict")):
        raise TypeError(
            "optimizer must be one optimizer, or several as a torchrec.optim.CombinedOptimizer, "
            f"got {type(optimizer).__name__}"
        )


def newest_with_dense_part(oldest_first: Sequence[Listed]) -> Path | None:
    """The newest of the checkpoints that `save_model` made, if it made one. A warning tells of newer ones of rows."""
    trained = [checkpoint for checkpoint in oldest_first if checkpoint.has_dense_part]
    # A store that has yet to train begins with a checkpoint without rows, which is nothing to tell of.
    newest = next((checkpoint for checkpoint in reversed(oldest_first) if checkpoint.manifest.step > 0), None)
    if newest is not None and not newest.has_dense_part:
        _log.warning(
            "%s holds rows only, as close() leaves them: %s",
            newest.path,
            f"going back to {trained[-1].path}, which save_model made" if trained else "save_model made none there",
        )
    return trained[-1].path if trained else None


def learning_rates(model: nn.Module) -> dict[str, dict[str, float]]:
    """Those of rows: by the name of a collection in the model, then by table."""
    return {
        name: {table: spec.lr for table, spec in optimizer.specs().items()}
        for name, optimizer in _fused_optimizers(model)
    }


def set_learning_rates(model: nn.Module, saved: dict[str, dict[str, float]]) -> None:
    """Sets what `learning_rates` returned; collections and tables that it does not have keep theirs."""
    for name, optimizer in _fused_optimizers(model):
        optimizer.set_learning_rates(saved.get(name, {}))


def _fused_optimizers(model: nn.Module) -> Iterator[tuple[str, FusedTableOptimizer]]:
    """Those of collections, sharded or not, by their names in the model itself, whatever is around it."""
    for name, module in unwrapped(model).named_modules():
        optimizer = getattr(module, "fused_optimizer", None)
        if isinstance(optimizer, FusedTableOptimizer):
            yield name, optimizer


def read_dense(path: Path) -> dict[str, Any]:
    """What `save_model` put into a checkpoint besides its rows.

    Raises:
        ValueError: it holds rows only.
        CorruptionError: it is damaged.
    """
    manifest = Manifest.read(path)
    if MODEL_FILE not in manifest.files:
        raise ValueError(f"{path} holds rows only: it was made by checkpoint() or close(), not by save_model")
    manifest.check_files(path, tables=False, logs=False)  # those of rows are for who opens them
    return load_dense(path, manifest)


def dense_state(model: nn.Module) -> dict[str, Any]:
    """A model's state dict without what its collections say of their store: a checkpoint says that by itself."""
    return {name: value for name, value in model.state_dict().items() if not isinstance(value, Description)}


def load_dense_state(model: nn.Module, saved: dict[str, Any]) -> None:
    """Loads what `dense_state` returned."""
    kept = {name: value for name, value in model.state_dict().items() if isinstance(value, Description)}
    model.load_state_dict({**kept, **saved})
