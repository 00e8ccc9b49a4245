"""TorchRec embedding tables on local disk: any int64 id, a fixed memory budget, updates fused into backward."""

import importlib
import importlib.metadata
import warnings
from contextlib import nullcontext
from typing import Any

from damo_torchrec import versions
from damo_torchrec.cli.ending import ended_imports

# The program imports what it needs by itself: some of its commands need no torch.
if not versions.is_tool():
    with versions.explained():
        import torch as _torch  # noqa: F401
        import torchrec as _torchrec  # noqa: F401

with ended_imports() if versions.is_tool() else nullcontext():
    try:
        from damo_torchrec import _core as _core
    except ImportError as error:
        raise ImportError(
            f"damo_torchrec's compiled part cannot be loaded ({error}). If that names librocksdb, RocksDB's library is "
            "missing, or of another version than at the build: `apt-get install librocksdb-dev`, and install the "
            "package anew. In a source tree, was it built? `make venv` does"
        ) from error
    __version__ = importlib.metadata.version("damo-torchrec")

if not versions.is_tool():
    with versions.explained():
        from damo_torchrec import init, optim
        from damo_torchrec.checkpoints.delta import Delta
        from damo_torchrec.erasing.report import ForgetReport
        from damo_torchrec.errors import (
            ClockWarning,
            ContinuedRowsWarning,
            CorruptionError,
            DamoError,
            NonFiniteGradientError,
            OutOfSpaceError,
            SchemaMismatchError,
            StoreClosedError,
            StoreLockedError,
            UncleanStoreError,
        )
        from damo_torchrec.life import Admit, Idle
        from damo_torchrec.modules import Embedding, EmbeddingBagCollection, EmbeddingCollection, damo_embedding_init
        from damo_torchrec.options import StoreOptions, TableOptions
        from damo_torchrec.stats import LookupStats, StoreStats, TableStats
        from damo_torchrec.store.default_store import default_store, set_default_store
        from damo_torchrec.store.embedding_store import EmbeddingStore
        from damo_torchrec.store.table import Table
        from damo_torchrec.training.checkpoint_manager import CheckpointManager
        from damo_torchrec.training.fitting import IncompatibleKeys
        from damo_torchrec.training.grad_scaler import follow_grad_scaler
        from damo_torchrec.training.loading import load_model
        from damo_torchrec.training.model_checkpoint import CheckpointInfo, checkpoint_info
        from damo_torchrec.training.prefetch import PrefetchIterator
        from damo_torchrec.training.saving import save_model, save_model_async
        from damo_torchrec.training.swap import swap
    if (_misfit := versions.misfit(versions.installed())) is not None:
        warnings.warn(_misfit, stacklevel=2)

# Submodules that need more packages, imported when they are first used.
_LAZY = ("onnx", "serving")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"damo_torchrec.{name}")
    raise AttributeError(f"module 'damo_torchrec' has no attribute {name!r}")


__all__ = [
    "Admit",
    "CheckpointInfo",
    "CheckpointManager",
    "ClockWarning",
    "ContinuedRowsWarning",
    "CorruptionError",
    "DamoError",
    "Delta",
    "Embedding",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "EmbeddingStore",
    "ForgetReport",
    "Idle",
    "IncompatibleKeys",
    "LookupStats",
    "NonFiniteGradientError",
    "OutOfSpaceError",
    "PrefetchIterator",
    "SchemaMismatchError",
    "StoreClosedError",
    "StoreLockedError",
    "StoreOptions",
    "StoreStats",
    "Table",
    "TableOptions",
    "TableStats",
    "UncleanStoreError",
    "checkpoint_info",
    "damo_embedding_init",
    "default_store",
    "follow_grad_scaler",
    "init",
    "load_model",
    "optim",
    "save_model",
    "save_model_async",
    "set_default_store",
    "swap",
]
