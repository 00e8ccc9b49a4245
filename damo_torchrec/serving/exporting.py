"""`export`: a model and its rows as a checkpoint to serve."""

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.exported import Exported
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.rank_identity import check_has_all_rows
from damo_torchrec.modules import store_of
from damo_torchrec.serving.dense import DENSE_FILE
from damo_torchrec.store.checkpoint_writer import CheckpointOptions
from damo_torchrec.store.embedding_store import EmbeddingStore


def export(model: nn.Module, args: Any, path: str | os.PathLike[str] | None = None, *, verify: bool = True) -> Path:
    """Makes a checkpoint of a model's rows that holds its dense part for serving, too, both of one step.

    It is a checkpoint like those of `EmbeddingStore.checkpoint`, with the dense part in eval mode as one more file,
    ``dense.onnx``. A `DeltaPublisher` finds out by itself what was exported last; where `path` is elsewhere, the store
    makes a checkpoint inside as well, so that after a crash it goes on from there.

    Args:
        model: with at least one collection of this package, all of them over one store; it is left as it is.
        args: what its forward is called with: a tuple, or the only argument. Values do not matter.
        path: a new directory. None: ``checkpoints/step_N`` inside the store.
        verify: run the dense part on `args` before it is written, and compare its outputs with the model's. Whether
            the model answers each sample by itself, so that requests may be answered together, is found out, too.

    Returns: the checkpoint's directory.

    Raises:
        ValueError: the model has no collection of this package, or looks up what it made itself, or `path` exists.
        TypeError: `args` do not fit the model, or hold what a graph cannot take.
        RuntimeError: torch.onnx cannot export the dense part, or it answers otherwise than the model.
        OutOfSpaceError, DamoError: the disk is full or refuses. As after any error, nothing is left behind.
    """

    def files(_: Manifest) -> dict[str, bytes]:
        return {DENSE_FILE: dense_graph(model, args, verify=verify)}

    store = store_of(model)
    check_has_all_rows(store.path, "what is served")
    store.flush()  # so that it has no journal, which a server would have to write first
    return _note_exported(store, store.session.checkpoint(path, CheckpointOptions(files)))


def _note_exported(store: EmbeddingStore, path: Path) -> Path:
    """Has the store know what servers begin from, and be able to go on from there after a crash; returns `path`."""
    with store.session.mutex:
        store.session.catalog.lineage.mark(store.session.catalog.lineage.last)
        if store.session.changed:  # else it is inside the store
            store.checkpoint()
        Exported(Manifest.read(path).id, str(path)).write(store.path)
    return path


def dense_graph(model: nn.Module, args: Any, *, verify: bool = True) -> bytes:
    """The dense part of a model as an ONNX graph that takes what its lookups give. Arguments and errors as `export`."""
    from damo_torchrec.onnx import export as export_graph  # needs packages that serving does not

    with tempfile.TemporaryDirectory(prefix="damo_torchrec-export-") as directory:
        return export_graph(model, args, Path(directory) / DENSE_FILE, dense_only=True, verify=verify).read_bytes()
