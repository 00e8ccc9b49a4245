"""A store's rows as arrays of a graph: files beside it, in the order of a perfect hash.

All tables of one dim are one `RowGroup`; csrc/serving/serving_rows.h writes it, and docs/serving.md describes the
arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from damo_torchrec import _core
from damo_torchrec.onnx.row_dtypes import ROW_DTYPES
from damo_torchrec.onnx.vocabulary import MEAN_ARRAY, RowFormat
from damo_torchrec.store.table import Table

# ONNX Runtime maps a file into memory, unless one is larger than the machine's.
_SHARD_BYTES = 8 << 30
# ONNX Runtime takes equal small arrays for one, and fails where that one is in a file.
_SMALL_BYTES = 1024


@dataclass(frozen=True)
class RowFilter:
    """Which rows of a table are exported.

    Args:
        min_count: those with at least so many updates.
        expire: those that were updated within the table's last so many updates; None for all.
        top_n: so many of those with the most updates; None for all.
    """

    min_count: int = 0
    expire: int | None = None
    top_n: int | None = None

    def to_core(self, table_iter: int) -> _core.RowFilter:
        """The engine's form of it."""
        core = _core.RowFilter()
        core.min_count = self.min_count
        core.min_last_step = 0 if self.expire is None else max(table_iter - self.expire, 0)
        core.top_n = self.top_n
        return core


@dataclass(frozen=True)
class RowGroup:
    """The rows of all tables of one dim.

    Args:
        dim: weights in a row.
        rows: how they are stored.
        tables: each table's number in the arrays.
        arrays: those that are small.
        files: dtype, shape and file of the others, which go into the graph where that is small.
        num_rows: rows of each table.
        faint_rows: of these, those whose weights are so small that the dtype keeps less of them than of others.
    """

    dim: int
    rows: RowFormat
    tables: dict[str, int]
    arrays: dict[str, npt.NDArray[Any]]
    files: dict[str, tuple[int, tuple[int, ...], Path]]
    num_rows: dict[str, int]
    faint_rows: dict[str, int]

    def initializer(self, name: str) -> str:
        """What the array `name` is called in a graph."""
        return f"rows/{self.dim}/{name}"

    def initializers(self, names: Sequence[str], directory: Path, embedded: bool) -> list[onnx.TensorProto]:
        """The arrays, for a graph in `directory`; `embedded` are those with all of their values, whose files go."""
        return [self._initializer(name, directory, embedded) for name in names]

    def size(self, names: Sequence[str]) -> int:
        """Bytes of these arrays."""
        return sum(self.files[name][2].stat().st_size for name in names if name in self.files)

    def _initializer(self, name: str, directory: Path, embedded: bool) -> onnx.TensorProto:
        if name in self.arrays:
            return onnx.numpy_helper.from_array(self.arrays[name], self.initializer(name))
        dtype, shape, file = self.files[name]
        tensor = onnx.TensorProto(name=self.initializer(name), data_type=dtype, dims=shape)
        if embedded or file.stat().st_size <= _SMALL_BYTES:
            tensor.raw_data = file.read_bytes()
            file.unlink()
            return tensor
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", file.relative_to(directory).as_posix()), ("length", file.stat().st_size)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor


@dataclass(frozen=True)
class RowWriter:
    """Writes row groups.

    Args:
        directory: where their files go.
        dtype: of their weights, one of `ROW_DTYPES`.
        filters: by table.
        unseen: by table, what an id without a row reads as: ``"zeros"``, ``"initial"`` or ``"mean"``.
        memory_bytes: what writing may take.
        num_threads: that build the hash.
        progress: called with the number of rows that were written since the last call.
    """

    directory: Path
    dtype: str
    filters: Mapping[str, RowFilter]
    unseen: Mapping[str, str]
    memory_bytes: int
    num_threads: int
    progress: Callable[[int], None]

    def write(self, tables: Sequence[Table]) -> dict[int, RowGroup]:
        """The groups of these tables of one store, by dim, all as they are at one moment.

        Raises:
            ValueError: a weight does not fit the dtype, or a table's initial values cannot be computed in a graph.
            OutOfSpaceError, DamoError: the disk is full or refuses.
        """
        engine = tables[0].session.engine
        snapshot = _core.RowSnapshot(engine, [table.opened.index for table in tables])
        positions: dict[int, list[int]] = {}
        for position, table in enumerate(tables):
            positions.setdefault(table.dim, []).append(position)
        return {dim: self._write_group(snapshot, tables, members) for dim, members in positions.items()}

    def _write_group(self, snapshot: _core.RowSnapshot, tables: Sequence[Table], members: Sequence[int]) -> RowGroup:
        dim = tables[members[0]].dim
        dtype = ROW_DTYPES[self.dtype]
        shard_rows = _SHARD_BYTES // (dim * dtype.weight_bytes)
        prefix = str(dim)
        group = _core.ServingRows(
            str(self.directory), prefix, dim, dtype.name, shard_rows, self.memory_bytes, self.num_threads
        )
        written = [self._add(group, snapshot, position, tables[position]) for position in members]
        group.finish()
        names = [tables[position].name for position in members]
        parts = np.frombuffer(group.parts, dtype=[("middle_row", np.int64), ("row_scale", np.float64)])
        total = group.num_rows
        rows = RowFormat(dim, dtype, group.num_shards, shard_rows)
        files: dict[str, tuple[int, tuple[int, ...], Path]] = {
            "keys": (onnx.TensorProto.INT64, (total,), self._file(prefix, "keys")),
            "buckets": (onnx.TensorProto.INT64, (group.num_buckets,), self._file(prefix, "buckets")),
        }
        for shard in range(group.num_shards):
            size = min(shard_rows, total - shard * shard_rows)
            files[f"rows_{shard}"] = (dtype.onnx_type, (size, dim), self._file(prefix, f"rows.{shard}"))
        if dtype.scaled:
            files["scales"] = (onnx.TensorProto.FLOAT, (total,), self._file(prefix, "scales"))
        arrays = {
            # Table 0 has no ids: all that are looked up in it find row 0.
            "first_bucket": np.array([0, *(table.first_bucket for table in written)], dtype=np.int64),
            "bucket_mask": np.array([0, *(table.bucket_mask for table in written)], dtype=np.int64),
            **{name: np.ascontiguousarray(parts[name]) for name in ("middle_row", "row_scale")},
            **self._draws([tables[position] for position in members]),
            **self._means(snapshot, tables, members),
        }
        return RowGroup(
            dim=dim,
            rows=rows,
            tables={name: i for i, name in enumerate(names, start=1)},
            arrays=arrays,
            files=files,
            num_rows={name: table.rows for name, table in zip(names, written, strict=True)},
            faint_rows={name: table.faint_rows for name, table in zip(names, written, strict=True)},
        )

    def _add(
        self, group: _core.ServingRows, snapshot: _core.RowSnapshot, position: int, table: Table
    ) -> _core.ServingTable:
        row_filter = self.filters[table.name].to_core(snapshot.states[position].iter)
        done = 0

        def progress(rows: int) -> None:
            nonlocal done
            self.progress(rows - done)
            done = rows

        return group.add(snapshot, position, row_filter, progress)

    def _draws(self, tables: Sequence[Table]) -> dict[str, npt.NDArray[Any]]:
        """What ids without a row read, by table: drawn, or 0."""
        nothing = (0, 0.0, 0.0)
        drawn = [_draw(table) if self.unseen[table.name] == "initial" else nothing for table in tables]
        draws = [nothing, *drawn]
        dtypes = (np.uint64, np.float32, np.float32)
        keys, low, high = (np.array(c, dtype=d) for c, d in zip(zip(*draws, strict=True), dtypes, strict=True))
        return {
            "stream_low": (keys & np.uint64(0xFFFFFFFF)).astype(np.int64),
            "stream_high": (keys >> np.uint64(32)).astype(np.int64),
            "draw_low": low,
            "draw_range": high - low,
        }

    def _means(
        self, snapshot: _core.RowSnapshot, tables: Sequence[Table], members: Sequence[int]
    ) -> dict[str, npt.NDArray[Any]]:
        """What ids without a row read, by table: the mean of its rows, or zeros. Nothing if no table has means."""
        means = {i: snapshot.mean(p) for i, p in enumerate(members, start=1) if self.unseen[tables[p].name] == "mean"}
        rows = np.zeros((1 + len(members), tables[members[0]].dim), dtype=np.float32)
        for i, mean in means.items():
            rows[i] = mean
        return {MEAN_ARRAY: rows} if means else {}

    def _file(self, prefix: str, name: str) -> Path:
        return self.directory / f"{prefix}.{name}"


def _draw(table: Table) -> tuple[int, float, float]:
    """The stream's key and the bounds of a table's initial values.

    Raises:
        ValueError: they are not uniform, or not of float32.
    """
    initializer = table.session.catalog.initializer(table.opened)
    kinds = (_core.Distribution.UNIFORM, _core.Distribution.CONSTANT)
    if initializer.distribution not in kinds or table.row_dtype is not torch.float32:
        stored = table.session.catalog.schema(table.opened)
        raise ValueError(
            f"table {table.name!r}: standard operators can draw the initial values of unseen ids where those are "
            f"uniform or constant, of float32; here they are {stored.initializer}, {stored.row_dtype}. "
            'unseen="zeros" goes without'
        )
    high = initializer.b if initializer.distribution is _core.Distribution.UNIFORM else initializer.a
    return initializer.stream_key, initializer.a, high
