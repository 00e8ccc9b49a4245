"""What a manifest says of a file, and whether the file is still that."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from damo_torchrec import _core
from damo_torchrec.checkpoints.layout import is_log, is_table_file
from damo_torchrec.errors import CorruptionError, DamoError

_LOG_BEGINNING = 4096


@dataclass(frozen=True)
class Finding:
    """Damage of a file, or of a directory."""

    path: Path
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class FileEntry:
    """A file: its size in bytes, and `file_digest`."""

    size: Annotated[int, range(2**63)]
    sha256: str | None

    @staticmethod
    def of(file: Path) -> "FileEntry":
        """That of a file as it is now."""
        return FileEntry(file.stat().st_size, file_digest(file))

    def finding(self, file: Path, *, records: bool = True) -> Finding | None:
        """What is wrong with a file that should be this one: it is missing, or not as it was written.

        Of a table file, its size alone is checked: it has checksums of its own. So have a log's records, which are
        checked with `records`.
        """
        if file.is_symlink():
            return Finding(file, "a file of the checkpoint", "a symbolic link")
        if not file.is_file():
            return Finding(file, "a file of the checkpoint", "none")
        if (size := file.stat().st_size) != self.size:
            return Finding(file, f"{self.size} bytes", f"{size} bytes")
        try:
            digest = file_digest(file)
        except OSError as error:
            return Finding(file, "a readable file", str(error))
        if records and is_log(file) and (damage := log_finding(file)) is not None:
            return damage
        if digest != self.sha256 and not (is_log(file) and self.sha256 is None):
            return Finding(file, f"the SHA-256 {self.sha256}", str(digest))
        return None


def file_digest(file: Path) -> str | None:
    """SHA-256 of a file; None for RocksDB's table files, which have checksums of their own.

    Of a log, whose records have such, it is that of the beginning: it tells the log from all others.
    """
    if is_table_file(file):
        return None
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        if is_log(file):
            return hashlib.sha256(opened.read(_LOG_BEGINNING)).hexdigest()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def log_finding(log: Path) -> Finding | None:
    """What is wrong with the records of a log: RocksDB takes some damage of one for its end."""
    try:
        _core.verify_log_file(str(log))
    except CorruptionError as error:
        return Finding(log, "a log of RocksDB with records that match their checksums", str(error))
    except DamoError as error:
        return Finding(log, "a readable file", str(error))
    return None
