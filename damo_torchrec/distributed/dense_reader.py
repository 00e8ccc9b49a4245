"""Reads what `torch.distributed.checkpoint` wrote, whoever made it: no code that is in it runs.

torch keeps its tensors so that `torch.load` reads them with ``weights_only``, but what it says of them as a pickle,
which it would load whatever is in it.
"""

from __future__ import annotations

import pickle
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from damo_torchrec.checkpoints.layout import DENSE_DIRECTORY
from damo_torchrec.errors import CorruptionError

_METADATA = ".metadata"
# Of these modules torch's metadata is made: plain records, enumerations, and what makes a layout of its name.
_KNOWN = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}


class _Unpickler(pickle.Unpickler):
    """Of torch's metadata alone."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"torch's metadata has no {module}.{name}")
        return super().find_class(module, name)


class DenseReader(FileSystemReader):
    """Of the tensors in a checkpoint of all ranks.

    Args:
        checkpoint: its directory.
        names: of its files, beside which none is read.
    """

    def __init__(self, checkpoint: Path, names: Set[str]) -> None:
        super().__init__(checkpoint / DENSE_DIRECTORY)
        self._directory = checkpoint / DENSE_DIRECTORY
        self._names = names

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What torch calls for; raises CorruptionError if it is something else, or names other files."""
        file = self._directory / _METADATA
        try:
            with file.open("rb") as opened:
                metadata = _Unpickler(opened).load()
            if not isinstance(metadata, Metadata):
                raise ValueError(f"it is a {type(metadata).__name__}")
            places = {f"{DENSE_DIRECTORY}/{info.relative_path}" for info in dict(metadata.storage_data).values()}
        except Exception as error:  # a pickle may raise anything
            raise CorruptionError(f"{file} is damaged: {error}") from error
        if others := sorted(places - self._names):
            raise CorruptionError(f"{file} is damaged: it names files that the checkpoint does not have, {others[:3]}")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
