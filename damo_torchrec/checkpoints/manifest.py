"""The manifest of a checkpoint: what its rows are, in one small JSON file. docs/format.md describes it."""

import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from damo_torchrec import _core
from damo_torchrec.checkpoints.document import dump_document, parse_document
from damo_torchrec.checkpoints.file_entry import FileEntry, Finding
from damo_torchrec.checkpoints.layout import MANIFEST_FILE, ROWS, is_log, logs
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import read_regular

# 2 adds rows of 16-bit weights, 3 logs beside the table files. A checkpoint without either is written as 1, which
# earlier releases read.
FORMAT_VERSION = 3
_FLOAT32 = "float32"

_Count = Annotated[int, range(2**63)]
_Step = Annotated[int, range(2**32)]


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

    dim: Annotated[int, range(1, _core.MOST_DIM + 1)]
    optimizer: dict[str, float | str]
    initializer: dict[str, float | str]
    numbers: InitializerNumbers = field(compare=False)
    row_dtype: str = _FLOAT32  # of the weights: "float32", "float16" or "bfloat16"


@dataclass(frozen=True)
class TableEntry:
    """A table as a checkpoint holds it. `number` is its key on disk and never given to another table."""

    number: Annotated[int, range(2**31)]
    schema: TableSchema
    iter: _Step
    rows: _Count

    def to_core(self, name: str) -> _core.TableSchema:
        """The engine's schema of the table `name`: what its rows are, without what a collection says of them."""
        schema = _core.TableSchema()
        schema.name, schema.number, schema.iter, schema.rows = name, self.number, self.iter, self.rows
        schema.dim = self.schema.dim
        schema.weight_type = _core.WeightType[self.schema.row_dtype.upper()]
        schema.optimizer = _core.OptimizerConfig(str(self.schema.optimizer["name"]))
        return schema


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
        files: the checkpoint's other files by relative path.
        id: tells the checkpoint from every other.
    """

    seed: Annotated[int, range(-(2**127), 2**127)]
    step: _Step
    sequence: _Count
    next_table_number: Annotated[int, range(2**31 + 1)]
    tables: dict[str, TableEntry]
    files: dict[str, FileEntry] = field(default_factory=dict)
    id: str = field(default_factory=new_id)

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json`` into `directory`, with an entry for each of the files that are there.

        Raises:
            DamoError: `read` would refuse it.
        """
        files = {
            str(path.relative_to(directory)): FileEntry.of(path)
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
        if any(is_log(name) for name in files):
            version = 3
        (directory / MANIFEST_FILE).write_text(dump_document("manifest", version, body, Manifest))

    def core_tables(self) -> list[_core.TableSchema]:
        """The tables as the engine takes them."""
        return [table.to_core(name) for name, table in self.tables.items()]

    def check_files(self, directory: Path, *, records: bool = True) -> None:
        """Raises CorruptionError if a file of the checkpoint `directory` is missing or not as it was written.

        Without `records`, those of logs, which take a while, are left to who reads them.
        """
        for log in logs(directory / ROWS):  # which RocksDB would apply
            if str(log.relative_to(directory)) not in self.files:
                raise CorruptionError(f"{log} is no file of the checkpoint {directory}: it is of another checkpoint")
        for damage in self.file_findings(directory, records=records):
            raise CorruptionError(
                f"{damage.path} is damaged, or belongs to another checkpoint: "
                f"expected {damage.expected}, found {damage.found}"
            )

    def file_findings(self, directory: Path, *, records: bool = True) -> Iterator[Finding]:
        """What is wrong with the files of the checkpoint `directory`: one is missing, or not as it was written."""
        for name in self.files:
            if (finding := self.file_finding(directory, name, records=records)) is not None:
                yield finding

    def file_finding(self, directory: Path, name: str, *, records: bool = True) -> Finding | None:
        """What is wrong with the file `name`, one of `files`, in the checkpoint `directory`."""
        return self.files[name].finding(directory / name, records=records)

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Reads and checks the manifest of the checkpoint `directory`.

        Raises:
            CorruptionError: the file is missing, damaged, or of a later format.
        """
        path = directory / MANIFEST_FILE
        try:
            content = read_regular(path)
        except FileNotFoundError as error:
            raise CorruptionError(f"{directory} is not a checkpoint: it has no {MANIFEST_FILE}") from error
        except OSError as error:
            raise CorruptionError(f"{path} cannot be read: {error}") from error
        return parse_document(content, path, "manifest", range(1, FORMAT_VERSION + 1), Manifest)
