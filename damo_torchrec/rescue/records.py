"""The records of a checkpoint's rows, read one after the other past what cannot be read; docs/format.md has the bytes.

A key is a number here: its bytes, big-endian. So the keys of a table lie together, and its ids ascend in them.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import TableRecord

# Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_KEY_BYTES = 12
END_OF_KEYS = 1 << (8 * _KEY_BYTES)
_IDS = 1 << 64
_LEAST_ID = -(1 << 63)
_DELETION_BIT = 1 << 31
_RECORDS_AT_A_TIME = 65536

# Where blocks of rows begin, in bytes; and how they do: nothing shared with a key before, a key of 12 + 8 bytes, the
# value's size (a varint), the key. csrc/storage_rocksdb/rocksdb_options.cc has the first; the other is RocksDB's.
_BLOCK_BYTES = 4096
_FIRST_ENTRY = re.compile(rb"\x00\x14[\x80-\xff]{0,4}[\x00-\x7f](.{12})", re.DOTALL)
_ENTRY_BYTES = 2 + 5 + _KEY_BYTES


@dataclass(frozen=True)
class Gap:
    """Keys from `first` on, below `end`, whose records cannot be read, or are malformed."""

    first: int
    end: int
    reason: str


@dataclass(frozen=True)
class IdRange:
    """Ids of a table from `first` on, below `end`: those of its rows, or of its deletion records."""

    table: str
    first: int
    end: int
    deletions: bool

    def __str__(self) -> str:
        what = "deletion records" if self.deletions else "rows"
        return f"{what} of table {self.table!r}, ids [{self.first}, {self.end})"


def payload_sizes(tables: Mapping[str, TableRecord]) -> dict[int, int]:
    """Bytes of a row behind its version, by table number."""
    sizes = {}
    for record in tables.values():
        schema = _core.TableSchema()
        schema.dim = record.schema.dim
        schema.weight_type = _core.WeightType[record.schema.row_dtype.upper()]
        schema.optimizer = _core.OptimizerConfig(str(record.schema.optimizer["name"]))
        sizes[record.number] = _core.payload_size(schema)
    return sizes


def counting(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """A function that is told of more and more, and tells `progress` how much that is of `total`."""
    done = 0

    def add(n: int) -> None:
        nonlocal done
        done += n
        progress(what, min(done, total), total)

    return add


def read_records(
    reader: _core.RecordReader, writer: _core.RecordWriter | None = None, read: Callable[[int], None] | None = None
) -> Iterator[Gap]:
    """Reads all records that can be read, has `writer` write them, and yields what lies between them.

    Args:
        reader: a new one; it keeps tallies of what was read.
        writer: gets the well-formed records.
        read: told the number of records read since it was told last.
    """
    start = 0
    while start < END_OF_KEYS:
        sound = reader.seek(_key_bytes(start))
        while sound and (n := reader.read(_RECORDS_AT_A_TIME, writer)) > 0:
            if read is not None:
                read(n)
            sound = not reader.error
        if not reader.error:
            break
        first = start if reader.last_key is None else key_number(reader.last_key) + 1
        reason = reader.error
        start = _first_readable(reader, first)
        yield Gap(first, start, reason)
    for records in reader.malformed:
        yield Gap(key_number(records.first), key_number(records.last) + 1, records.reason)


def _first_readable(reader: _core.RecordReader, first: int) -> int:
    """A key above `first` from which on records can be read, where those just below it cannot; the end if none can.

    Keys that are tried are those where blocks begin, and then others further and further away.
    """
    unreadable, readable = first, END_OF_KEYS
    further = (first + (1 << n) for n in range(8 * _KEY_BYTES))
    for key in chain(_block_starts(Path(reader.path), reader.error), further):
        if unreadable < key < END_OF_KEYS:
            if reader.seek(_key_bytes(key)):
                readable = key
                break
            unreadable = key
    while readable - unreadable > 1:
        middle = (unreadable + readable) // 2
        if reader.seek(_key_bytes(middle)):
            readable = middle
        else:
            unreadable = middle
    return readable


def _block_starts(rows: Path, message: str) -> Iterator[int]:
    """The first keys of the blocks behind the one that a message of RocksDB is about; some may be none."""
    file, offset = named_table_file(rows, message), re.search(r"offset (\d+)", message)
    if file is None or offset is None or not file.is_file():
        return
    with file.open("rb", buffering=0) as opened:
        place = int(offset[1])
        while start := os.pread(opened.fileno(), _ENTRY_BYTES, place := place + _BLOCK_BYTES):
            key = _FIRST_ENTRY.match(start)
            if key is not None:
                yield key_number(key[1])


def ids_between(first: int, end: int, tables: Mapping[str, TableRecord]) -> Iterator[IdRange]:
    """The ids of tables whose keys are from `first` on, below `end`."""
    for deletions in (False, True):
        for name, table in tables.items():
            begin = (table.number | (_DELETION_BIT if deletions else 0)) * _IDS
            low, high = max(first, begin), min(end, begin + _IDS)
            if low < high:
                yield IdRange(name, low - begin + _LEAST_ID, high - begin + _LEAST_ID, deletions)


def named_table_file(rows: Path, message: str) -> Path | None:
    """The table file in `rows` that a message of RocksDB names."""
    # RocksDB looks for a missing .sst under the suffix that LevelDB gave it as well, and names that.
    match = re.search(r"(\d+)\.(?:sst|ldb)", message)
    return rows / f"{match[1]}.sst" if match else None


def key_number(key: bytes) -> int:
    """A key as a number."""
    return int.from_bytes(key, "big")


def _key_bytes(key: int) -> bytes:
    return key.to_bytes(_KEY_BYTES, "big")
