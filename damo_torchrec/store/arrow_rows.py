"""Rows as Arrow's record batches, and back: `Table.to_arrow`, `Table.from_arrow`, `EmbeddingStore.table_from_arrow`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.checkpoints.table_entry import TableSchema
from damo_torchrec.needs_pyarrow import pyarrow as pa
from damo_torchrec.optim.state_parts import StatePart, state_parts
from damo_torchrec.store.arrow_schema import (
    ID,
    LAST_STEP,
    UPDATES,
    WEIGHT,
    StoredAs,
    arrow_schema,
    check_columns,
    is_list,
)
from damo_torchrec.store.importing import GivenRows, import_rows, import_table
from damo_torchrec.store.open_table import OpenTable
from damo_torchrec.store.rows import Floats, Rows, row_bytes, scan_rows
from damo_torchrec.store.session import Session

_BATCH_BYTES = 16 << 20


def to_arrow(
    session: Session, table: OpenTable, *, state: bool, counts: bool, batch_size: int | None
) -> pa.RecordBatchReader:
    """What `Table.to_arrow` does."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    entry = session.catalog.entry(table.name, session.engine)
    parts = table.layout.state if state else ()
    schema = arrow_schema(StoredAs(table.name, entry.schema, entry.iter), parts, counts=counts)
    scan = scan_rows(session, table, batch_size or max(_BATCH_BYTES // row_bytes(table.layout), 1))
    return pa.RecordBatchReader.from_batches(schema, (_batch(schema, rows, parts, counts) for rows in scan))


def _batch(schema: pa.Schema, rows: Rows, parts: tuple[StatePart, ...], counts: bool) -> pa.RecordBatch:
    dim, column = rows.weights.shape[1], 0
    arrays = [pa.array(rows.ids), _lists(rows.weights)]
    for part in parts:
        numbers = rows.state[:, column : column + part.width(dim)]
        column += part.width(dim)
        arrays.append(pa.array(numbers[:, 0]) if part.rowwise else _lists(numbers))
    if counts:
        arrays += [pa.array(rows.last_steps), pa.array(rows.counts)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _lists(matrix: Floats) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def from_arrow(session: Session, table: OpenTable, data: object, *, state: bool, counts: bool) -> int:
    """What `Table.from_arrow` does."""
    reader = reader_of(data)
    schema = session.catalog.entry(table.name, session.engine).schema
    rows = _Decoder(table.name, schema, reader, state=state, counts=counts)
    return import_rows(session, table, rows)


def table_from_arrow(
    session: Session, name: str, data: object, schema: TableSchema, iteration: int, *, state: bool, counts: bool
) -> int:
    """Makes the table `name`, which is as `schema`, of rows. Returns how many."""
    rows = _Decoder(name, schema, reader_of(data), state=state, counts=counts)
    return import_table(session, name, schema, iteration, rows)


def reader_of(data: object) -> pa.RecordBatchReader:
    """The record batches of something that has some. Raises TypeError."""
    if isinstance(data, pa.RecordBatchReader):
        return data
    if isinstance(data, pa.Table):
        return data.to_reader()
    if isinstance(data, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(data.schema, [data])
    if hasattr(data, "__arrow_c_stream__") and hasattr(pa.RecordBatchReader, "from_stream"):
        return pa.RecordBatchReader.from_stream(data)
    kinds = "a RecordBatchReader, Table or RecordBatch of pyarrow, or an Arrow stream"
    raise TypeError(f"data must be {kinds}, got {type(data).__name__}")


class _Decoder:
    """Rows of record batches, checked as far as a batch tells.

    Raises:
        ValueError: its columns are not those that the table takes; in iterations, a number is missing or of the wrong
            type.
    """

    def __init__(
        self, table: str, schema: TableSchema, reader: pa.RecordBatchReader, *, state: bool, counts: bool
    ) -> None:
        self._table = table
        self._dim = schema.dim
        self._reader = reader
        parts = state_parts(schema.optimizer) if state else None
        found = check_columns(table, reader.schema, schema, parts)
        self._parts = [part for part in parts or () if part.name in found]
        self._counts = counts and LAST_STEP in found

    def __iter__(self) -> Iterator[GivenRows]:
        for batch in self._reader:
            if batch.num_rows:
                yield self._decode(batch)

    def _decode(self, batch: pa.RecordBatch) -> GivenRows:
        ids = self._integers(batch, ID)
        state: Mapping[str, Floats] = {
            part.name: self._floats(batch, part.name, 1 if part.rowwise else self._dim) for part in self._parts
        }
        headers = None
        if self._counts:
            columns = [self._integers(batch, name) for name in (LAST_STEP, UPDATES)]
            for name, values in zip((LAST_STEP, UPDATES), columns, strict=True):
                if (values < 0).any() or (values >= 2**32).any():
                    raise ValueError(f"table {self._table!r}: {name} must be in 0..{2**32 - 1}")
            headers = np.ascontiguousarray(np.stack(columns, axis=1).astype(np.uint32))
        return GivenRows(ids, self._floats(batch, WEIGHT, self._dim).reshape(len(ids), self._dim), state, headers)

    def _column(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        column = batch.column(name)
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if column.null_count:
            raise ValueError(f"table {self._table!r}: column {name!r} has nulls")
        return column

    def _integers(self, batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
        column = self._column(batch, name)
        try:
            numbers = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid as error:  # of uint64
            raise ValueError(f"table {self._table!r}: column {name!r} must fit int64: {error}") from None
        return np.ascontiguousarray(numbers)

    def _floats(self, batch: pa.RecordBatch, name: str, width: int) -> Floats:
        """A column's numbers: ``(n, width)``, or ``(n,)`` where there is one for a row."""
        column = self._column(batch, name)
        shape: tuple[int, ...] = (len(column),)
        if is_list(column.type):
            shape = (len(column), width)
            if not pa.types.is_fixed_size_list(column.type):
                lengths = np.diff(column.offsets.to_numpy())
                if (lengths != width).any():
                    wrong = lengths[lengths != width][0]
                    raise ValueError(f"table {self._table!r}: {name!r} must be of {width} numbers, got {wrong}")
            column = column.flatten()
            if column.null_count:
                raise ValueError(f"table {self._table!r}: column {name!r} has nulls")
        numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # what is beyond float32 is refused as infinite
            return np.ascontiguousarray(numbers.astype(np.float32, copy=False)).reshape(shape)
