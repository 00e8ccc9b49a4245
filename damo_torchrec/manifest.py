"""The manifest of a checkpoint: what its rows are, in one small JSON file. docs/format.md describes it."""

import hashlib
import json
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from damo_torchrec.errors import CorruptionError

FORMAT_VERSION = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class TableSchema:
    """What may not change while a table has rows."""

    dim: int
    optimizer: dict[str, float | str]
    initializer: dict[str, float | str]


@dataclass(frozen=True)
class TableRecord:
    """A table as a checkpoint holds it. `number` is its key on disk and never given to another table."""

    number: int
    schema: TableSchema
    iter: int
    rows: int


@dataclass(frozen=True)
class Manifest:
    """A checkpoint's contents; `id` tells it from every other checkpoint."""

    seed: int
    step: int
    next_table_number: int
    tables: dict[str, TableRecord]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json`` into `directory`."""
        body = asdict(self)
        text = json.dumps({"format_version": FORMAT_VERSION, "sha256": _digest(body), "manifest": body}, indent=1)
        (directory / FILE_NAME).write_text(text + "\n")

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
            if version != FORMAT_VERSION:
                raise CorruptionError(f"{path} has format version {version}; this version reads {FORMAT_VERSION}")
            if document["sha256"] != _digest(body):
                raise CorruptionError(f"{path} is damaged: its checksum does not match")
            tables = {
                name: TableRecord(**{**table, "schema": TableSchema(**table["schema"])})
                for name, table in body["tables"].items()
            }
            return Manifest(**{**body, "tables": tables})
        except FileNotFoundError as error:
            raise CorruptionError(f"{directory} is not a checkpoint: it has no {FILE_NAME}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptionError(f"{path} is damaged: {error}") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
