"""What a manifest says of a file, and whether the file is still that."""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from damo_torchrec import _core
from damo_torchrec.checkpoints.layout import is_log, is_table_file
from damo_torchrec.checkpoints.regular_file import NotRegularError, check_regular, open_regular, read_regular
from damo_torchrec.errors import CorruptionError, DamoError

# The end of a table file: its format version, and RocksDB's sign that it is one.
_FOOTER_END = struct.Struct("<IQ")
_TABLE_FORMAT_VERSION = 5

_LOG_BEGINNING = 4096
_CHUNK = 1 << 20


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
    """A file: its size in bytes, and its SHA-256; None of a file of rows whose entry an earlier release made."""

    size: Annotated[int, range(2**63)]
    sha256: str | None

    @staticmethod
    def of(file: Path) -> "FileEntry":
        """That of a file as it is now."""
        return FileEntry(check_regular(file).st_size, file_digest(file))

    def finding(self, file: Path, *, tables: bool = True, logs: bool = True, records: bool = True) -> Finding | None:
        """What is wrong with a file that should be this one: it is missing, or not as it was written.

        Args:
            file: which.
            tables: whether a table file is read. Its blocks have checksums of their own, which readers check.
            logs: whether a log is read: its records have checksums, too.
            records: whether those of a log are read, which have checksums of their own, too. Readers check them.
        """
        try:
            size = check_regular(file).st_size
            if size != self.size:
                return Finding(file, f"{self.size} bytes", f"{size} bytes")
            if (is_table_file(file) and not tables) or (is_log(file) and not logs):
                return None
            return self._content_finding(file, records)
        except (FileNotFoundError, NotADirectoryError):
            return Finding(file, "a file of the checkpoint", "none")
        except NotRegularError as error:
            return Finding(file, "a regular file", error.what)
        except OSError as error:
            return Finding(file, "a readable file", str(error))

    def _content_finding(self, file: Path, records: bool) -> Finding | None:
        digest = None if self.sha256 is None else self._digest(file)
        damaged = digest != self.sha256
        damage = None
        if is_log(file) and (damaged or records):
            damage = log_finding(file)
        elif is_table_file(file) and damaged:
            damage = table_file_finding(file)
        if damage is not None:  # it says more than that there is some
            return damage
        return Finding(file, f"the SHA-256 {self.sha256}", str(digest)) if damaged else None

    def _digest(self, file: Path) -> str:
        return file_digest(file)

    def read(self, file: Path) -> bytes:
        """The contents of a file that should be this one. Raises CorruptionError if they are others."""
        try:
            content = read_regular(file, self.size)
        except (OSError, ValueError) as error:
            raise CorruptionError(f"{file} is damaged: expected {self.size} bytes, but {error}") from error
        if (finding := self.content_finding(file, content)) is not None:
            raise CorruptionError(
                f"{file} is damaged, or belongs to something else: expected {finding.expected}, found {finding.found}"
            )
        return content

    def content_finding(self, file: Path, content: bytes) -> Finding | None:
        """What is wrong with the contents of a file that were read, and should be those of this one."""
        if len(content) != self.size:
            return Finding(file, f"{self.size} bytes", f"{len(content)} bytes")
        if (digest := hashlib.sha256(content).hexdigest()) != self.sha256:
            return Finding(file, f"the SHA-256 {self.sha256}", digest)
        return None


class EarlierLogEntry(FileEntry):
    """A log as formats before 4 have it: with the SHA-256 of its first bytes, which tell it from all other logs."""

    def _digest(self, file: Path) -> str:
        with open_regular(file) as opened:
            return hashlib.sha256(opened.read(_LOG_BEGINNING)).hexdigest()


def file_digest(file: Path) -> str:
    """SHA-256 of a regular file. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while chunk := opened.read(_CHUNK):
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
