"""Rows of a checkpoint in a store of their own, into which deltas are written: the checkpoint stays as it is."""

import logging
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from damo_torchrec import _core
from damo_torchrec.files import on_tmpfs
from damo_torchrec.manifest import Manifest
from damo_torchrec.options import StoreOptions
from damo_torchrec.private_copy import claimed, make_directory
from damo_torchrec.serving.arrays import Array
from damo_torchrec.serving.card import Output
from damo_torchrec.store import EmbeddingStore
from damo_torchrec.table import TableDefinition

_PURPOSE = "serving"
_log = logging.getLogger(__name__)


def open_working_copy(checkpoint: Path, memory_budget: int | str, num_threads: int | None) -> EmbeddingStore:
    """A temporary store with the rows of a checkpoint, without tables. It is removed when it is closed.

    It is beside the checkpoint, whose files it links, or if nothing can be written there among other temporary files.

    Raises:
        CorruptionError: the checkpoint is damaged.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """
    options = StoreOptions(num_threads=num_threads)
    with claimed(checkpoint, _PURPOSE):
        directory = _make_directory(checkpoint)
        try:
            store = EmbeddingStore(directory, memory_budget=memory_budget, restore=checkpoint, options=options)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    store._temporary = True
    return store


def open_tables(store: EmbeddingStore, manifest: Manifest, outputs: Iterable[Output]) -> None:
    """Opens the tables that outputs are of, as the checkpoint's manifest describes them.

    Raises:
        ValueError: this version does not know an initializer.
    """
    unseen = {output.table: output.unseen for output in outputs}
    definitions = [TableDefinition.of_schema(name, manifest.tables[name].schema, how) for name, how in unseen.items()]
    store._open_tables(definitions)


class UnseenRows:
    """What ids of a table read as without a row, even those that still have one.

    Args:
        store: a working copy with its tables open.
        output: of the table.
    """

    def __init__(self, store: EmbeddingStore, output: Output) -> None:
        self._engine = store._engine
        self._dim = output.dim
        self._unseen = _core.UnseenRows[output.unseen.upper()]
        self._index = store._catalog.open_without_rows(store.table(output.table), self._engine)

    def __call__(self, ids: Array) -> Array:
        """Float32 ``(n, dim)`` of int64 ``(n,)``."""
        ids = np.ascontiguousarray(ids)
        rows = np.empty((len(ids), self._dim), dtype=np.float32)
        self._engine.get(self._index, ids.ctypes.data, len(ids), self._unseen, rows.ctypes.data)
        return rows


def _make_directory(checkpoint: Path) -> Path:
    try:
        return make_directory(checkpoint, _PURPOSE)
    except OSError as error:
        directory = Path(tempfile.mkdtemp(prefix=f"damo_torchrec-{_PURPOSE}-"))
        _log.warning("nothing can be written beside %s (%s): its rows are copied to %s", checkpoint, error, directory)
        if on_tmpfs(str(directory)):
            _log.warning("%s is on tmpfs, that is, in memory beyond memory_budget: set TMPDIR to a disk", directory)
        return directory
