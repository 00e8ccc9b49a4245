"""`ParquetRows`: rows of Parquet files, row group by row group, or a rank's share of them."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from damo_torchrec.data.columns import Columns
from damo_torchrec.data.source import check_columns, permutation

_PIECE = 1 << 15  # rows that are decoded at a time


@dataclass(frozen=True)
class _Group:
    file: Path
    number: int
    rows: int


class ParquetRows:
    """Rows of Parquet files.

    Their footers are read when it is made, for the number of rows of each row group. Shuffled, row groups come in
    another order each epoch. With several ranks, each takes as many rows of that order as the others, one after the
    other; rows beyond that, fewer than `world_size`, are left out in that epoch.

    Args:
        paths: a file, a directory (all ``*.parquet`` below it, by name, also in directories that are links; not what
            begins with ``.`` or ``_``, as unfinished files of Spark do), or a list of these.
        rank: of this process, in 0..world_size - 1; or of this worker.
        world_size: how many share the rows.

    Raises:
        ValueError: there is no such file, or none at all, or fewer rows than ranks.
        OSError: a file cannot be read, or is no Parquet.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..world_size - 1, got {rank} of {world_size}")
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self._groups = [group for path in given for file in _files(Path(path)) for group in _groups(file)]
        total = sum(group.rows for group in self._groups)
        self._rank, self._world_size, self._count = rank, world_size, total // world_size
        if self._count == 0:
            raise ValueError(f"{[str(path) for path in given]!s:.200} hold {total} rows, for {world_size} ranks")

    @property
    def count(self) -> int:
        """Rows of an epoch of this rank."""
        return self._count

    def read(self, columns: Columns, begin: int, seed: Sequence[int] | None) -> Iterator[pa.RecordBatch]:
        """As of `Source`.

        Raises:
            ValueError: a file has not all of the columns, or other row groups than before.
            OSError: a file cannot be read.
        """
        order = range(len(self._groups)) if seed is None else permutation(len(self._groups), seed).tolist()
        skipped, left = self._rank * self._count + begin, self._count - begin
        for group in (self._groups[i] for i in order):
            if skipped >= group.rows:
                skipped -= group.rows
                continue
            for piece in _pieces(group, columns):
                if skipped < piece.num_rows:
                    part = piece.slice(skipped, left)
                    left -= part.num_rows
                    yield part
                skipped = max(skipped - piece.num_rows, 0)
                if left == 0:
                    return

    def fingerprint(self) -> dict[str, Any]:
        """As of `Source`."""
        groups = "\n".join(f"{group.file.name} {group.number} {group.rows}" for group in self._groups)
        digest = hashlib.sha256(groups.encode()).hexdigest()
        return {"kind": "Parquet", "files": digest, "count": self._count, "world_size": self._world_size}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        below = (Path(name) for name in glob.iglob("**/*.parquet", root_dir=path, recursive=True))  # follows links
        shown = [path / name for name in below if not any(part.startswith("_") for part in name.parts)]
        found = sorted(name for name in shown if not name.is_dir())
        if not found:
            raise ValueError(f"{path} has no *.parquet in it")
        return found
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a directory")
    return [path]


def _groups(file: Path) -> Iterator[_Group]:
    try:
        footer = pq.read_metadata(file)
    except pa.ArrowInvalid as error:
        raise OSError(f"{file} is no Parquet file: {error}") from error
    except OSError as error:
        raise OSError(f"{file} cannot be read: {error}") from error
    for number in range(footer.num_row_groups):
        yield _Group(file, number, footer.row_group(number).num_rows)


def _pieces(group: _Group, columns: Columns) -> Iterator[pa.RecordBatch]:
    try:
        yield from _read(group, columns)
    except (pa.ArrowInvalid, OSError) as error:  # few of which name the file
        raise OSError(f"{group.file} cannot be read: {error}") from error


def _read(group: _Group, columns: Columns) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(group.file) as file:
        check_columns(columns, file.schema_arrow.names, str(group.file))
        rows = file.metadata.row_group(group.number).num_rows if group.number < file.metadata.num_row_groups else -1
        if rows != group.rows:
            raise ValueError(
                f"{group.file} has changed since it was opened: row group {group.number} has {rows} rows, "
                f"expected {group.rows}"
            )
        yield from file.iter_batches(_PIECE, row_groups=[group.number], columns=columns.names)
