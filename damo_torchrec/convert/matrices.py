"""Tables that others have as matrices, whose row i is that of id i: state dicts of torch, and files of safetensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from damo_torchrec.convert.new_store import SourceTable
from damo_torchrec.errors import CorruptionError
from damo_torchrec.store.importing import GivenRows

# TorchRec's EmbeddingBagCollection and EmbeddingCollection.
_TORCHREC = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.weight$")
_INNER = ("state_dict", "model_state_dict", "model")  # what training programs put a state dict under
_BATCH_BYTES = 1 << 20
_DTYPES = {torch.float32: "float32", torch.float64: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class _Sliced(Protocol):
    """What parts of a matrix are read from."""

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """Those rows."""


def state_dict_tables(file: Path, wanted: Mapping[str, str | None]) -> list[SourceTable]:
    """Tables of a state dict that ``torch.save`` wrote. Nothing in it is run, and its tensors are mapped, not loaded.

    Args:
        file: which.
        wanted: keys of tensors, and what the tables are called; None for the key without ``.weight``. Empty: TorchRec's
            tables, by the names that these have.

    Raises:
        ValueError: it has no such tensors, or none that is a table.
        CorruptionError: it is no such file, or has more than tensors in it.
        OSError: it cannot be read.
    """
    with file.open("rb"):  # which says what is wrong
        pass
    try:
        with warnings.catch_warnings():  # of sparse tensors, which are refused: torch 2.14 says that it validates them
            warnings.filterwarnings("ignore", "Validating sparse", UserWarning)
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch has no one exception for a damaged file
        raise CorruptionError(f"{file} is no state dict that torch.save wrote, or a damaged one: {error}") from error
    for name in _INNER:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping):
        raise ValueError(f"{file} holds {type(found).__name__}, expected a state dict")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    chosen = _chosen(file, shapes, wanted)
    if odd := [key for key in chosen if not _is_dense(tensors[key])]:
        raise ValueError(f"{file}: {odd[0]!r} is sparse, quantized or without content, expected a dense matrix")
    return [_table(name, shapes[key], tensors[key].dtype, tensors[key]) for key, name in chosen.items()]


@contextmanager
def safetensors_tables(file: Path, wanted: Mapping[str, str | None]) -> Iterator[list[SourceTable]]:
    """The same of a file of safetensors, while that is open.

    Raises:
        ImportError: the package safetensors is missing.
        ValueError, CorruptionError, OSError: as `state_dict_tables`.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"files of safetensors need pip install safetensors: {error}") from error
    with file.open("rb"):
        pass
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  # which is no dict
            shapes = {key: tuple(one.get_shape()) for key, one in slices.items()}
            chosen = _chosen(file, shapes, wanted)
            yield [_table(name, shapes[key], slices[key][:1].dtype, slices[key]) for key, name in chosen.items()]
    except SafetensorError as error:
        raise CorruptionError(f"{file} is no file of safetensors, or a damaged one: {error}") from error


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized


def _chosen(file: Path, shapes: Mapping[str, Sequence[int]], wanted: Mapping[str, str | None]) -> dict[str, str]:
    """The keys of tables, and what these are called."""
    matrices = [key for key, shape in shapes.items() if len(shape) == 2 and shape[1] > 0]
    if not wanted:
        found = {key: match[1] for key in matrices if (match := _TORCHREC.search(key)) is not None}
        if not found:
            raise ValueError(f"{file} has no tables of TorchRec: name the tensors that are some. It has {matrices}")
        return found
    for key in wanted:
        if key not in matrices:
            what = f"is of the shape {tuple(shapes[key])}" if key in shapes else "is not there"
            raise ValueError(f"{file}: {key!r} {what}; a table is one of {matrices}")
    return {key: name or key.removesuffix(".weight") for key, name in wanted.items()}


def _table(name: str, shape: Sequence[int], dtype: torch.dtype, matrix: _Sliced) -> SourceTable:
    if dtype not in _DTYPES:
        raise ValueError(f"table {name!r}: weights must be floating point, got {dtype}")
    rows, dim = shape
    step = max(_BATCH_BYTES // (4 * dim), 1)

    def read() -> Iterator[GivenRows]:
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            weights: Any = matrix[begin:end].detach().to(torch.float32).contiguous().numpy()
            yield GivenRows(np.arange(begin, end, dtype=np.int64), weights)

    return SourceTable(name, dim, rows, _DTYPES[dtype], read)
