"""`Delta`: what changed in a store since an earlier state of it, as a directory. docs/format.md describes it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.checkpoints.document import dump_document, parse_document
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import DELTA_FILE, array_files
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import read_regular

FORMAT_VERSION = 1

_Count = Annotated[int, range(2**63)]
_Step = Annotated[int, range(2**32)]


@dataclass(frozen=True)
class TableChanges:
    """What a delta says of a table.

    Args:
        number: what its files are called by.
        dim: weights in a row.
        changed: rows that are new or have changed.
        deleted: rows that are gone.
    """

    number: Annotated[int, range(2**31)]
    dim: Annotated[int, range(1, 2**31)]
    changed: _Count
    deleted: _Count


@dataclass(frozen=True)
class DeltaManifest:
    """What ``delta.json`` holds.

    Args:
        id: of the state that it leads to.
        base: of the state that it begins from.
        line: ids of that state and of all that the store went through since.
        seed: the store's.
        since_step: the store's step at `base`.
        step: the store's step now.
        tables: by name.
        files: the delta's other files, by name.
    """

    id: str
    base: str
    line: list[str]
    seed: Annotated[int, range(-(2**127), 2**127)]
    since_step: _Step
    step: _Step
    tables: dict[str, TableChanges]
    files: dict[str, FileEntry]

    def write(self, directory: Path) -> None:
        """Writes ``delta.json``."""
        (directory / DELTA_FILE).write_text(dump_document("delta", FORMAT_VERSION, asdict(self), DeltaManifest))


@dataclass(frozen=True)
class DeltaTable:
    """A table's rows in a delta: arrays that are mapped from its files.

    Args:
        ids: int64 ``(n,)``, ascending, of rows that are new or have changed.
        weights: float32 ``(n, dim)``, theirs.
        deleted: int64 ``(m,)``, ascending, of rows that are gone. Some may never have been there.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    deleted: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Delta:
    """What changed in a store from one state to another. `EmbeddingStore.export_delta` writes it.

    Args:
        path: its directory.
        manifest: what it says of itself.
        tables: by name.
    """

    path: Path
    manifest: DeltaManifest
    tables: Mapping[str, DeltaTable]

    @property
    def id(self) -> str:
        """Of the state that it leads to."""
        return self.manifest.id

    @property
    def base(self) -> str:
        """Of the state that it begins from: a checkpoint's id, or a delta's."""
        return self.manifest.base

    @property
    def line(self) -> Sequence[str]:
        """Ids of `base` and of all states that the store went through until the delta was made."""
        return self.manifest.line

    @property
    def since_step(self) -> int:
        """The store's step at `base`."""
        return self.manifest.since_step

    @property
    def step(self) -> int:
        """The store's step that it leads to."""
        return self.manifest.step

    @property
    def files(self) -> Sequence[str]:
        """What it carries besides rows."""
        arrays = {name for table in self.manifest.tables.values() for name in array_files(table.number)}
        return sorted(set(self.manifest.files) - arrays)

    def follows(self, history: Sequence[str]) -> bool:
        """Whether what is at the last state of `history`, ids of states, gets to this one by applying the delta.

        So it is if the store was in that state at `base` or later: the delta holds all that changed since.
        """
        return bool(history) and history[-1] in self.line

    @staticmethod
    def read(path: str | os.PathLike[str]) -> "Delta":
        """Reads and checks a delta; its arrays stay on disk.

        Raises:
            ValueError: `path` is none.
            CorruptionError: it is damaged, or of a later format.
        """
        path = Path(path).absolute()
        manifest = _read_manifest(path)
        for name, expected in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise CorruptionError(f"{file} is missing")
            if (found := FileEntry.of(file)) != expected:
                raise CorruptionError(
                    f"{file} is damaged: expected {expected.size} bytes with the SHA-256 {expected.sha256}, "
                    f"found {found.size} bytes with {found.sha256}"
                )
        tables = {name: _read_table(path, table) for name, table in manifest.tables.items()}
        return Delta(path, manifest, tables)


def _read_manifest(path: Path) -> DeltaManifest:
    file = path / DELTA_FILE
    try:
        content = read_regular(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"{path} is no delta: it has no {DELTA_FILE}") from error
    except OSError as error:
        raise CorruptionError(f"{file} cannot be read: {error}") from error
    return parse_document(content, file, "delta", range(1, FORMAT_VERSION + 1), DeltaManifest)


def _read_table(path: Path, table: TableChanges) -> DeltaTable:
    shapes = [(table.changed,), (table.changed, table.dim), (table.deleted,)]
    arrays: list[Any] = []
    for name, shape, dtype in zip(array_files(table.number), shapes, (np.int64, np.float32, np.int64), strict=True):
        try:
            array = np.load(path / name, mmap_mode="r" if shape[0] else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CorruptionError(f"{path / name} is damaged: {error}") from error
        if array.shape != shape or array.dtype != dtype:
            raise CorruptionError(
                f"{path / name} is damaged: expected {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}"
            )
        if array.ndim == 1 and bool((array[1:] <= array[:-1]).any()):
            raise CorruptionError(f"{path / name} is damaged: its ids do not ascend")
        arrays.append(array)
    return DeltaTable(*arrays)
