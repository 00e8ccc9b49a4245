"""Files of Parquet and of Arrow's IPC format, read and written a batch at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from damo_torchrec.files import staged_file
from damo_torchrec.needs_pyarrow import pyarrow as pa
from damo_torchrec.store.arrow_schema import is_list

SUFFIXES = (".parquet", ".arrow")
_BATCH_BYTES = 16 << 20


def write_rows(file: Path, rows: pa.RecordBatchReader, advance: Callable[[int], None]) -> int:
    """Writes a file of record batches, that appears whole or not at all. Returns how many rows it has.

    Parquet gets no dictionaries, byte-stream-split floats and Zstandard, where Arrow was built with it; a row group for
    each batch.

    Args:
        file: is not there yet. Its suffix says the format.
        rows: as `Table.to_arrow` gives them.
        advance: told how many more rows are written.

    Raises:
        ValueError: the file is there, or has another suffix.
        OSError: the system refuses.
    """
    make = _parquet_writer if _is_parquet(file) else pa.ipc.new_file
    if os.path.lexists(file):
        raise ValueError(f"{file} exists already: an export needs a new file")
    count = 0
    try:
        with staged_file(file) as opened, make(opened, rows.schema) as writer:
            for batch in rows:
                writer.write_batch(batch)
                count += batch.num_rows
                advance(batch.num_rows)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # such as of a full disk
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    return count


@contextmanager
def read_rows(file: Path) -> Iterator[tuple[pa.RecordBatchReader, int]]:
    """A file's record batches, of no more than some megabytes each, and how many rows it has.

    Raises:
        ValueError: it is no such file, or has another suffix.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:
            if _is_parquet(file):
                parquet = pa.parquet.ParquetFile(opened, pre_buffer=False)  # else all of it is in memory
                total, schema = parquet.metadata.num_rows, parquet.schema_arrow
                bytes_of_row = max(_bytes_of_row(parquet.metadata) // max(total, 1), 8)
                batches: Iterable[Any] = parquet.iter_batches(batch_size=max(_BATCH_BYTES // bytes_of_row, 1))
            else:
                ipc = pa.ipc.open_file(opened)
                schema = ipc.schema
                total = sum(ipc.get_batch(i).num_rows for i in range(ipc.num_record_batches))
                batches = (ipc.get_batch(i) for i in range(ipc.num_record_batches))
            yield pa.RecordBatchReader.from_batches(schema, batches), total
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's; Arrow has none for what is damaged
            raise
        raise ValueError(f"{file} cannot be read: {error}") from None


def _bytes_of_row(metadata: Any) -> int:
    """The bytes of all values, before they were compressed."""
    return sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))


def _is_parquet(file: Path) -> bool:
    if file.suffix not in SUFFIXES:
        raise ValueError(f"{file} must end in {' or '.join(SUFFIXES)}, which says its format")
    return file.suffix == ".parquet"


def _parquet_writer(opened: Any, schema: pa.Schema) -> Any:
    # Lists have their numbers in a leaf of their own.
    floats = [
        field.name if pa.types.is_floating(field.type) else f"{field.name}.list.element"
        for field in schema
        if pa.types.is_floating(field.type) or is_list(field.type)
    ]
    return pa.parquet.ParquetWriter(
        opened,
        schema,
        use_dictionary=False,
        use_byte_stream_split=floats,
        compression="zstd" if pa.Codec.is_available("zstd") else "none",
    )
