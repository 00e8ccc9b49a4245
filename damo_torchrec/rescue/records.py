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
from damo_torchrec.checkpoints.layout import table_file_in
from damo_torchrec.checkpoints.table_entry import TableEntry

END_OF_KEYS = 1 << (8 * _core.KEY_BYTES)
_RECORDS_AT_A_TIME = 65536

# How RocksDB begins a block of rows: nothing shared with a key before, the size of the key and of the 8 bytes that it
# adds to each, the value's size (a varint), the key.
_FIRST_ENTRY = re.compile(
    rb"\x00\x%02x[\x80-\xff]{0,4}[\x00-\x7f](.{%d})" % (_core.KEY_BYTES + 8, _core.KEY_BYTES), re.DOTALL
)
_ENTRY_BYTES = 2 + 5 + _core.KEY_BYTES


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


def payload_sizes(tables: Mapping[str, TableEntry]) -> dict[int, int]:
    """Bytes of a row behind its version, by table number."""
    return {table.number: _core.payload_size(table.to_core(name)) for name, table in tables.items()}


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
    further = (first + (1 << n) for n in range(8 * _core.KEY_BYTES))
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
        while start := os.pread(opened.fileno(), _ENTRY_BYTES, place := place + _core.BLOCK_BYTES):
            key = _FIRST_ENTRY.match(start)
            if key is not None:
                yield key_number(key[1])


def ids_between(first: int, end: int, tables: Mapping[str, TableEntry]) -> Iterator[IdRange]:
    """The ids of tables whose keys are from `first` on, below `end`."""
    for deletions in (False, True):
        for name, table in tables.items():
            low = max(first, key_number(_core.first_key(table.number, deletions)))
            high = min(end - 1, key_number(_core.last_key(table.number, deletions)))
            if low <= high:
                first_id, last_id = _core.decode_id(_key_bytes(low)), _core.decode_id(_key_bytes(high))
                yield IdRange(name, first_id, last_id + 1, deletions)


def named_table_file(rows: Path, message: str) -> Path | None:
    """The table file in `rows` that a message of RocksDB names."""
    name = table_file_in(message)
    return rows / name if name is not None else None


def key_number(key: bytes) -> int:
    """A key as a number."""
    return int.from_bytes(key, "big")


def _key_bytes(key: int) -> bytes:
    return key.to_bytes(_core.KEY_BYTES, "big")
