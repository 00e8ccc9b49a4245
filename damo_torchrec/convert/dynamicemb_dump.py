"""Files that NVIDIA's dynamicemb dumps (``DynamicEmbDump``), a folder for each collection of tables.

Its documentation, "DynamicEmbDump", and the names in released dumps give the layout: of each table and rank ::

    TABLE_emb_keys.rank_R.world_size_W       int64 × n: keys
    TABLE_emb_values.rank_R.world_size_W     embedding_dtype × dim × n: their weights, in that order
    TABLE_emb_scores..., TABLE_emb_opt_values..., TABLE_counter_...    which are passed over

and in ``TABLE_opt_args.json`` ``embedding_dtype`` and ``embedding_dim``; before these were there, values were float32.
All numbers are little-endian.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from damo_torchrec import _core
from damo_torchrec.convert.new_store import SourceTable
from damo_torchrec.errors import CorruptionError
from damo_torchrec.store.importing import GivenRows

_KEYS = re.compile(r"(.+)_emb_keys\.rank_(\d+)\.world_size_(\d+)")
_BATCH_BYTES = 1 << 20
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class _Part:
    """One rank's files of a table: `rows` of them."""

    keys: Path
    values: Path
    rows: int


def dynamicemb_tables(path: Path) -> list[SourceTable]:
    """The tables in a dump's folder, or in the folders directly in it, by the names that they have.

    Raises:
        ValueError: there are none.
        CorruptionError: files are missing, or of sizes that do not fit each other.
        OSError: they cannot be read.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no directory, as a dump of dynamicemb is")
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    found = [(folder, name) for folder in folders for name in sorted({match[1] for match in _key_files(folder)})]
    if not found:
        raise ValueError(f"{path} has no files TABLE_emb_keys.rank_R.world_size_W, as a dump of dynamicemb does")
    return [_table(folder, name) for folder, name in found]


def _key_files(folder: Path) -> list[re.Match[str]]:
    """Matches of the names of files with keys."""
    return [match for file in sorted(folder.iterdir()) if (match := _KEYS.fullmatch(file.name))]


def _table(folder: Path, name: str) -> SourceTable:
    matches = [match for match in _key_files(folder) if match[1] == name]
    sizes = {int(match[3]) for match in matches}
    ranks = sorted(int(match[2]) for match in matches)
    if len(sizes) != 1 or ranks != list(range(*sizes)):
        raise CorruptionError(f"{folder} is damaged: of table {name!r} it has the ranks {ranks} of {sorted(sizes)}")
    (world_size,) = sizes
    parts = [_part(folder, name, f"rank_{rank}.world_size_{world_size}") for rank in ranks]
    rows = sum(part.rows for part in parts)
    dtype, dim = _kind(folder / f"{name}_opt_args.json", parts, rows)
    for part in parts:
        if (size := part.values.stat().st_size) != (expected := part.rows * dim * _ITEM_BYTES[dtype]):
            raise CorruptionError(
                f"{part.values} is damaged: {part.rows} rows of {dim} {dtype} take {expected} bytes, it has {size}"
            )
    return SourceTable(name, dim, rows, dtype, lambda: (rows for part in parts for rows in _read(part, dtype, dim)))


def _part(folder: Path, name: str, rank: str) -> _Part:
    keys, values = folder / f"{name}_emb_keys.{rank}", folder / f"{name}_emb_values.{rank}"
    size = keys.stat().st_size
    if size % 8:
        raise CorruptionError(f"{keys} is damaged: {size} bytes are no number of keys")
    if not values.is_file():
        raise CorruptionError(f"{folder} is damaged: it has {keys.name}, but no {values.name}")
    return _Part(keys, values, size // 8)


def _kind(meta: Path, parts: list[_Part], rows: int) -> tuple[str, int]:
    """The dtype of weights, and how many a row has: by the document, or else by the size of the files."""
    try:
        document = json.loads(meta.read_text()) if meta.is_file() else {}
        dtype = str(document.get("embedding_dtype", "float32")).removeprefix("torch.")
        size = sum(part.values.stat().st_size for part in parts)
        dim = document.get("embedding_dim", size // max(rows, 1) // 4)
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptionError(f"{meta} is damaged: {error}") from error
    if dtype not in _ITEM_BYTES or isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= _core.MOST_DIM:
        raise CorruptionError(
            f"{meta} says {dim!r} weights of {dtype}, expected 1 to {_core.MOST_DIM} of {', '.join(_ITEM_BYTES)}"
        )
    return dtype, dim


def _read(part: _Part, dtype: str, dim: int) -> Iterator[GivenRows]:
    step = max(_BATCH_BYTES // (4 * dim), 1)
    with part.keys.open("rb") as keys, part.values.open("rb") as values:
        for begin in range(0, part.rows, step):
            n = min(step, part.rows - begin)
            content = keys.read(8 * n), values.read(n * dim * _ITEM_BYTES[dtype])
            if (len(content[0]), len(content[1])) != (8 * n, n * dim * _ITEM_BYTES[dtype]):
                raise CorruptionError(f"{part.keys} or {part.values} has changed while it was read")
            ids = np.frombuffer(content[0], "<i8").astype(np.int64)
            yield GivenRows(ids, _floats(content[1], dtype).reshape(n, dim))


def _floats(content: bytes, dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, "<f2" if dtype == "float16" else "<f4").astype(np.float32)
