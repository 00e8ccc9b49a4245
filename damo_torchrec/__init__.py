"""TorchRec embedding tables on local disk: any int64 id, a fixed memory budget, updates fused into backward.

What is public is imported at its first use: most of it needs torch and TorchRec, which the command line and whatever
only reads files do without.
"""

import importlib
import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING, Any

from damo_torchrec import lazy, versions
from damo_torchrec.store import process_end as _process_end  # noqa: F401  # from now on, stores are closed at the end

if TYPE_CHECKING:
    from damo_torchrec import data as data
    from damo_torchrec import distributed as distributed
    from damo_torchrec import ids as ids
    from damo_torchrec import init as init
    from damo_torchrec import onnx as onnx
    from damo_torchrec import optim as optim
    from damo_torchrec import serving as serving
    from damo_torchrec.advice import Advice as Advice
    from damo_torchrec.advice import CachePoint as CachePoint
    from damo_torchrec.checkpoints.cache_profile import CacheProfile as CacheProfile
    from damo_torchrec.checkpoints.delta import Delta as Delta
    from damo_torchrec.erasing.report import ForgetReport as ForgetReport
    from damo_torchrec.errors import ClockWarning as ClockWarning
    from damo_torchrec.errors import ContinuedRowsWarning as ContinuedRowsWarning
    from damo_torchrec.errors import CorruptionError as CorruptionError
    from damo_torchrec.errors import DamoError as DamoError
    from damo_torchrec.errors import NonFiniteGradientError as NonFiniteGradientError
    from damo_torchrec.errors import OutOfSpaceError as OutOfSpaceError
    from damo_torchrec.errors import SchemaMismatchError as SchemaMismatchError
    from damo_torchrec.errors import StoreClosedError as StoreClosedError
    from damo_torchrec.errors import StoreLockedError as StoreLockedError
    from damo_torchrec.errors import UncleanStoreError as UncleanStoreError
    from damo_torchrec.life import Admit as Admit
    from damo_torchrec.life import Idle as Idle
    from damo_torchrec.metrics import MetricsLogger as MetricsLogger
    from damo_torchrec.metrics import open_metrics as open_metrics
    from damo_torchrec.modules import Embedding as Embedding
    from damo_torchrec.modules import EmbeddingBagCollection as EmbeddingBagCollection
    from damo_torchrec.modules import EmbeddingCollection as EmbeddingCollection
    from damo_torchrec.modules import damo_embedding_init as damo_embedding_init
    from damo_torchrec.options import StoreOptions as StoreOptions
    from damo_torchrec.options import TableOptions as TableOptions
    from damo_torchrec.stats import LookupStats as LookupStats
    from damo_torchrec.stats import StoreStats as StoreStats
    from damo_torchrec.stats import TableStats as TableStats
    from damo_torchrec.store.default_store import default_store as default_store
    from damo_torchrec.store.default_store import set_default_store as set_default_store
    from damo_torchrec.store.embedding_store import EmbeddingStore as EmbeddingStore
    from damo_torchrec.store.table import Table as Table
    from damo_torchrec.training.checkpoint_manager import CheckpointManager as CheckpointManager
    from damo_torchrec.training.fitting import IncompatibleKeys as IncompatibleKeys
    from damo_torchrec.training.grad_scaler import follow_grad_scaler as follow_grad_scaler
    from damo_torchrec.training.loading import load_model as load_model
    from damo_torchrec.training.model_checkpoint import CheckpointInfo as CheckpointInfo
    from damo_torchrec.training.model_checkpoint import checkpoint_info as checkpoint_info
    from damo_torchrec.training.prefetch import PrefetchIterator as PrefetchIterator
    from damo_torchrec.training.saving import save_model as save_model
    from damo_torchrec.training.saving import save_model_async as save_model_async
    from damo_torchrec.training.swap import swap as swap

# Modules by the names that they have.
_HOMES = {
    "Delta": "checkpoints.delta",
    "ForgetReport": "erasing.report",
    "ClockWarning": "errors",
    "ContinuedRowsWarning": "errors",
    "CorruptionError": "errors",
    "DamoError": "errors",
    "NonFiniteGradientError": "errors",
    "OutOfSpaceError": "errors",
    "SchemaMismatchError": "errors",
    "StoreClosedError": "errors",
    "StoreLockedError": "errors",
    "UncleanStoreError": "errors",
    "Admit": "life",
    "Idle": "life",
    "Embedding": "modules",
    "EmbeddingBagCollection": "modules",
    "EmbeddingCollection": "modules",
    "damo_embedding_init": "modules",
    "StoreOptions": "options",
    "TableOptions": "options",
    "Advice": "advice",
    "CachePoint": "advice",
    "CacheProfile": "checkpoints.cache_profile",
    "MetricsLogger": "metrics",
    "open_metrics": "metrics",
    "LookupStats": "stats",
    "StoreStats": "stats",
    "TableStats": "stats",
    "default_store": "store.default_store",
    "set_default_store": "store.default_store",
    "EmbeddingStore": "store.embedding_store",
    "Table": "store.table",
    "CheckpointManager": "training.checkpoint_manager",
    "IncompatibleKeys": "training.fitting",
    "follow_grad_scaler": "training.grad_scaler",
    "load_model": "training.loading",
    "CheckpointInfo": "training.model_checkpoint",
    "checkpoint_info": "training.model_checkpoint",
    "PrefetchIterator": "training.prefetch",
    "save_model": "training.saving",
    "save_model_async": "training.saving",
    "swap": "training.swap",
}
_SUBMODULES = ("data", "distributed", "ids", "onnx", "serving")
# Those that modules of this package import, too, by ``from damo_torchrec import``.
_INNER = ("_core", "init", "optim")

__all__ = [
    "Admit",
    "Advice",
    "CachePoint",
    "CacheProfile",
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
    "MetricsLogger",
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
    "open_metrics",
    "optim",
    "save_model",
    "save_model_async",
    "set_default_store",
    "swap",
]

_attribute, _names = lazy.attributes(__name__, _HOMES)


def _get(name: str) -> Any:
    if name in _SUBMODULES:
        with versions.explained():
            return lazy.module(f"damo_torchrec.{name}")
    if name in _INNER:  # in the middle of an import
        return _compiled_part() if name == "_core" else importlib.import_module(f"damo_torchrec.{name}")
    if name == "__version__":
        return importlib.metadata.version("damo-torchrec")
    if name not in _HOMES:
        return _attribute(name)  # says that there is none
    with versions.explained():
        value = _attribute(name)
    versions.warn_of_misfit()
    return value


def __dir__() -> list[str]:
    return sorted({*_names(), *_SUBMODULES, *_INNER, "__version__"})


if TYPE_CHECKING:
    __version__: str
else:  # else a misspelt name would be of any type
    __getattr__ = _get


def _compiled_part() -> Any:
    try:
        return importlib.import_module("damo_torchrec._core")
    except ImportError as error:
        raise ImportError(f"damo_torchrec's compiled part cannot be loaded ({error}). {_remedy(error)}") from error


def _remedy(error: ImportError) -> str:
    if "librocksdb" in str(error):
        return (
            "This build uses the system's RocksDB, which is missing or of another version than at the build: "
            "`apt-get install librocksdb-dev`, and build the package anew; wheels of releases bring theirs"
        )
    if isinstance(error, ModuleNotFoundError):
        version = ".".join(map(str, sys.version_info[:2]))
        return (
            f"{os.path.dirname(__file__)} has none for this Python, {version}. If that is a source tree, `make venv` "
            "builds one, and a package that pip installed is found from any other folder; else have this Python's pip "
            "install it anew"
        )
    return "Install the package anew, with the Python that it is used with"
