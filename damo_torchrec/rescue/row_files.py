"""What is wrong with a file of rows, by itself: read from end to end, as no opening of a database does."""

import struct
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import Finding, log_finding
from damo_torchrec.checkpoints.layout import is_log, is_table_file
from damo_torchrec.checkpoints.regular_file import check_regular
from damo_torchrec.errors import DamoError

# The end of a table file: its format version, and RocksDB's sign that it is one.
_FOOTER_END = struct.Struct("<IQ")
_TABLE_FORMAT_VERSION = 5


def row_file_finding(file: Path) -> Finding | None:
    """What is wrong with a table file or a log; of any other file, only whether it is a regular one."""
    try:
        check_regular(file)
    except OSError as error:
        return Finding(file, "a regular file", str(error))
    if is_log(file):
        return log_finding(file)
    return table_file_finding(file) if is_table_file(file) else None


def table_file_finding(file: Path) -> Finding | None:
    """What is wrong with a table file."""
    try:
        _core.verify_table_file(str(file))
    except DamoError as error:
        reason = str(error).removeprefix(f"{file}: ")
        return Finding(file, "a table file of RocksDB with blocks that match their checksums", reason)
    # No checksum covers the format version, and RocksDB reads others as well.
    with file.open("rb") as opened:
        opened.seek(-_FOOTER_END.size, 2)
        version, _ = _FOOTER_END.unpack(opened.read())
    if version != _TABLE_FORMAT_VERSION:
        return Finding(file, f"format_version {_TABLE_FORMAT_VERSION} in its footer", str(version))
    return None
