"""The manifest of a checkpoint: what its rows are, in one small JSON file. docs/format.md describes it."""

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from damo_torchrec import _core
from damo_torchrec.errors import CorruptionError, DamoError

# 2 adds rows of 16-bit weights, 3 logs beside the table files. A checkpoint without either is written as 1, which
# earlier releases read.
FORMAT_VERSION = 3
_FLOAT32 = "float32"
FILE_NAME = "manifest.json"
_LOG = ".log"
_LOG_BEGINNING = 4096

_Count = Annotated[int, range(2**63)]
_Step = Annotated[int, range(2**32)]


@dataclass(frozen=True)
class Finding:
    """Damage of a file, or of a directory."""

    path: Path
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True)
class FileRecord:
    """A file of a checkpoint."""

    size: _Count
    sha256: str | None


@dataclass(frozen=True)
class InitializerNumbers:
    """What an initializer's arguments came to where its table was made; another C library may round otherwise."""

    a: float
    b: float
    low: float
    high: float


@dataclass(frozen=True)
class TableSchema:
    """What may not change while a table has rows."""

    dim: Annotated[int, range(1, 2**31)]
    optimizer: dict[str, float | str]
    initializer: dict[str, float | str]
    numbers: InitializerNumbers = field(compare=False)
    row_dtype: str = _FLOAT32  # of the weights: "float32", "float16" or "bfloat16"


@dataclass(frozen=True)
class TableRecord:
    """A table as a checkpoint holds it. `number` is its key on disk and never given to another table."""

    number: Annotated[int, range(2**31)]
    schema: TableSchema
    iter: _Step
    rows: _Count


def new_id() -> str:
    """An id that no checkpoint has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's contents.

    Args:
        seed: of the store.
        step: the store's.
        sequence: rises from checkpoint to checkpoint of a store: the highest is the newest.
        next_table_number: what no table has had yet.
        tables: by name.
        files: the checkpoint's other files by relative path: size in bytes, and `file_digest`.
        id: tells the checkpoint from every other.
    """

    seed: Annotated[int, range(-(2**127), 2**127)]
    step: _Step
    sequence: _Count
    next_table_number: Annotated[int, range(2**31 + 1)]
    tables: dict[str, TableRecord]
    files: dict[str, FileRecord] = field(default_factory=dict)
    id: str = field(default_factory=new_id)

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json`` into `directory`, with a record of the files that are there."""
        files = {
            str(path.relative_to(directory)): FileRecord(path.stat().st_size, file_digest(path))
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        body = asdict(replace(self, files=files))
        version = 1
        for table in body["tables"].values():
            if table["schema"]["row_dtype"] == _FLOAT32:
                del table["schema"]["row_dtype"]
            else:
                version = 2
        if any(name.endswith(_LOG) for name in files):
            version = 3
        text = json.dumps({"format_version": version, "sha256": digest_of(body), "manifest": body}, indent=1)
        (directory / FILE_NAME).write_text(text + "\n")

    def check_files(self, directory: Path) -> None:
        """Raises CorruptionError if a file of the checkpoint `directory` is missing or not as it was written."""
        for log in directory.glob(f"rows/*{_LOG}"):  # which RocksDB would apply
            if str(log.relative_to(directory)) not in self.files:
                raise CorruptionError(f"{log} is no file of the checkpoint {directory}: it is of another checkpoint")
        for damage in self.file_findings(directory):
            raise CorruptionError(
                f"{damage.path} is damaged, or belongs to another checkpoint: "
                f"expected {damage.expected}, found {damage.found}"
            )

    def file_findings(self, directory: Path) -> Iterator[Finding]:
        """What is wrong with the files of the checkpoint `directory`: one is missing, or not as it was written."""
        for name in self.files:
            if (finding := self.file_finding(directory, name)) is not None:
                yield finding

    def file_finding(self, directory: Path, name: str) -> Finding | None:
        """What is wrong with the file `name`, one of `files`, in the checkpoint `directory`."""
        record, path = self.files[name], directory / name
        if not path.is_file():
            return Finding(path, "a file of the checkpoint", "none")
        if (size := path.stat().st_size) != record.size:
            return Finding(path, f"{record.size} bytes", f"{size} bytes")
        try:
            digest = file_digest(path)
            if path.suffix == _LOG:
                _core.verify_log_file(str(path))  # RocksDB takes some damage of one for its end
        except CorruptionError as error:
            return Finding(path, "a log of RocksDB with records that match their checksums", str(error))
        except (OSError, DamoError) as error:
            return Finding(path, "a readable file", str(error))
        if digest != record.sha256 and not (path.suffix == _LOG and record.sha256 is None):
            return Finding(path, f"the SHA-256 {record.sha256}", str(digest))
        return None

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Reads and checks the manifest of the checkpoint `directory`.

        Raises:
            CorruptionError: the file is missing, damaged, or of a later format.
        """
        path = directory / FILE_NAME
        try:
            document = json.loads(path.read_bytes())
            version, body = document["format_version"], document["manifest"]
            if type(version) is not int or version not in range(1, FORMAT_VERSION + 1):
                raise CorruptionError(f"{path} has format version {version}; this version reads 1 to {FORMAT_VERSION}")
            if document["sha256"] != digest_of(body):
                raise CorruptionError(f"{path} is damaged: its checksum does not match")
            manifest: Manifest = parse(body, Manifest, "manifest")
            return manifest
        except FileNotFoundError as error:
            raise CorruptionError(f"{directory} is not a checkpoint: it has no {FILE_NAME}") from error
        except OSError as error:
            raise CorruptionError(f"{path} cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptionError(f"{path} is damaged: {error}") from error


def parse(value: Any, kind: Any, where: str) -> Any:
    """What JSON has as `kind`, the declared type of a field.

    Raises:
        ValueError: it is of another type or out of range, or lacks fields, or has others.
    """
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and isinstance(kind, type) and is_dataclass(kind):
        kinds = get_type_hints(kind, include_extras=True)
        required = {f.name for f in fields(kind) if f.default is MISSING}
        if odd := required - value.keys() | value.keys() - kinds.keys():
            raise ValueError(f"{where} lacks these fields, or should not have them: {sorted(odd)}")
        return kind(**{name: parse(item, kinds[name], f"{where}.{name}") for name, item in value.items()})
    if isinstance(value, list) and origin is list:
        return [parse(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and origin is dict:
        return {name: parse(item, args[1], f"{where}.{name}") for name, item in value.items()}
    if origin is Annotated:
        fits = type(value) is args[0] and value in args[1]
    else:
        plain = args if isinstance(kind, UnionType) else (kind,)
        fits = type(value) in plain or (type(value) is int and float in plain)
    if not fits:
        raise ValueError(f"{where} is {value!r}")
    return value


def file_digest(path: Path) -> str | None:
    """SHA-256 of a file; None for RocksDB's table files, which have checksums of their own.

    Of a log, whose records have such, it is that of the beginning: it tells the log from all others.
    """
    if path.suffix == ".sst":
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if path.suffix == _LOG:
            return hashlib.sha256(file.read(_LOG_BEGINNING)).hexdigest()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(body: dict[str, Any]) -> str:
    """SHA-256 of what JSON makes of it, keys in order."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
