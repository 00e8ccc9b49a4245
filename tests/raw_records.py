"""The rows of a checkpoint as another program's RocksDB reads them, by docs/format.md alone."""

import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rocksdict


@contextmanager
def opened(checkpoint: Path, scratch: Path) -> Iterator[rocksdict.Rdict]:
    """The rows of a checkpoint in a copy: rocksdict writes a file of its own beside them."""
    shutil.copytree(checkpoint / "rows", scratch / "rows")
    options = rocksdict.Options(raw_mode=True)
    rows = rocksdict.Rdict(str(scratch / "rows"), options, access_type=rocksdict.AccessType.read_only())
    try:
        yield rows
    finally:
        rows.close()


def decode_key(key: bytes) -> tuple[int, int]:
    """(table number, id): big-endian u32, then big-endian u64 of the id with its sign bit flipped."""
    number, flipped = struct.unpack(">IQ", key)
    return number, struct.unpack(">q", struct.pack(">Q", flipped ^ (1 << 63)))[0]
