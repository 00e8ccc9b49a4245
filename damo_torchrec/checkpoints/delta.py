"""`Delta`: what changed in a store since an earlier state of it, as a directory. docs/format.md describes it."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.checkpoints.array_file import map_array
from damo_torchrec.checkpoints.document import MAY_LACK, dump_document, parse_versioned, shown
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.ladder import END, Headers, Ladder, position
from damo_torchrec.checkpoints.layout import DELTA_FILE, array_files, header_file
from damo_torchrec.checkpoints.manifest import LAST_SEQUENCE
from damo_torchrec.checkpoints.regular_file import NotRegularError, check_regular, read_regular
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.files import os_errors

FORMAT_VERSION = 2
_WITHOUT_LADDERS_AND_MEANS = 1  # the version of a delta in which no table has one
_LARGEST_MANIFEST = 64 << 20  # bytes
_BLOCK_BYTES = 1 << 22
_LARGEST_WEIGHT = float(np.finfo(np.float32).max)
_FILE_NAME = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,200}")  # none that leads out of a directory

_Count = Annotated[int, range(2**63)]
_Step = Annotated[int, range(2**32)]
_Position = Annotated[int, range(END)]


@dataclass(frozen=True)
class TableChanges:
    """What a delta says of a table.

    Args:
        number: what its files are called by.
        dim: weights in a row.
        changed: rows that are new or have changed.
        deleted: rows that are gone.
        ladder: where its rows die, `Ladder.positions`; else nothing.
        mean: of the rows that it leads to, if ids without a row read it; else empty.
    """

    number: Annotated[int, range(2**31)]
    dim: Annotated[int, range(1, 2**31)]
    changed: _Count
    deleted: _Count
    ladder: list[_Position] = field(default_factory=list, metadata=MAY_LACK)
    mean: list[float] = field(default_factory=list, metadata=MAY_LACK)

    def files(self) -> list[str]:
        """Its arrays' files."""
        return [*array_files(self.number), *([header_file(self.number)] if self.ladder else [])]

    def check(self, step: int) -> None:
        """Raises ValueError if it contradicts itself, in a delta that leads to `step`."""
        if self.ladder and (highest := max(Ladder(tuple(self.ladder)).positions)) > position(step):
            raise ValueError(f"a ladder stands at position {highest}, but the delta leads to {position(step)}")


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
        sequence: when it was made, in microseconds since 1970, or later where a clock was set back; 0 if an earlier
            release made it.
        same_rows: the id of the state in `line` after which no row has changed; empty if rows have.
        abandoned: how many ids at the end of `line` are of states that the store has gone back behind: the delta leads
            from these back to its line.
    """

    id: str
    base: str
    line: list[str]
    seed: Annotated[int, range(-(2**127), 2**127)]
    since_step: _Step
    step: _Step
    tables: dict[str, TableChanges]
    files: dict[str, FileEntry]
    sequence: Annotated[int, range(LAST_SEQUENCE)] = 0
    same_rows: str = ""
    abandoned: Annotated[int, range(2**31)] = 0

    def check(self) -> None:
        """Raises ValueError if it contradicts itself."""
        for what, state in (("id", self.id), ("base", self.base), *(("line", state) for state in self.line)):
            check_id(what, state)
        if len(set(self.line)) != len(self.line) or self.line[:1] != [self.base] or self.id in self.line:
            raise ValueError(f"line {self.line} does not lead from base {self.base} to {self.id}")
        if self.same_rows and self.same_rows not in self.past():
            raise ValueError(f"same_rows {shown(self.same_rows)} is not in line")
        if self.abandoned >= len(self.line):
            raise ValueError(f"abandoned is {self.abandoned}, but line has no more than {len(self.line)}")
        if self.step < self.since_step:
            raise ValueError(f"step {self.step} is before since_step {self.since_step}")
        if odd := [name for name in self.files if not _FILE_NAME.fullmatch(name) or name == DELTA_FILE]:
            raise ValueError(f"files are called {odd}")
        for table in self.tables.values():
            table.check(self.step)
        numbers = [table.number for table in self.tables.values()]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"tables share the numbers {sorted(numbers)}")
        for name, table in self.tables.items():
            if len(table.mean) not in (0, table.dim) or any(abs(weight) > _LARGEST_WEIGHT for weight in table.mean):
                raise ValueError(f"the mean of table {shown(name)} is {shown(table.mean)}, not {table.dim} float32s")
        if absent := self.arrays() - self.files.keys():
            raise ValueError(f"files lack {sorted(absent)}")

    @property
    def version(self) -> int:
        """Of the format: the lowest that has all that it says."""
        known_before = not any(table.ladder or table.mean for table in self.tables.values())
        return _WITHOUT_LADDERS_AND_MEANS if known_before else FORMAT_VERSION

    def arrays(self) -> set[str]:
        """Names of the files that rows are in."""
        return {name for table in self.tables.values() for name in table.files()}

    def abandoned_states(self) -> list[str]:
        """Their ids."""
        return self.line[len(self.line) - self.abandoned :]

    def past(self) -> list[str]:
        """Ids of the states in `line` that the store has not gone back behind."""
        return self.line[: len(self.line) - self.abandoned]

    @staticmethod
    def read(path: Path) -> "DeltaManifest":
        """That of the delta `path`, whose other files are not looked at. Raises what `Delta.read` does."""
        file = path / DELTA_FILE
        if not path.is_dir() or not os.path.lexists(file):
            raise ValueError(f"{path} is no delta: it has no {DELTA_FILE}")
        try:
            content = read_regular(file, _LARGEST_MANIFEST)
        except (NotRegularError, ValueError) as error:
            raise CorruptionError(f"{file} is damaged: {error}") from error
        except OSError as error:
            raise DamoError(f"{file} cannot be read: {error}") from error
        versions = range(1, FORMAT_VERSION + 1)
        version, manifest = parse_versioned(content, file, "delta", versions, DeltaManifest, DeltaManifest.check)
        if version < manifest.version:
            raise CorruptionError(f"{file} is damaged: it has ladders, which format version {version} has not")
        return manifest

    def write(self, directory: Path) -> None:
        """Writes ``delta.json``."""
        body = asdict(self)
        for table in body["tables"].values():
            for name in ("ladder", "mean"):
                if not table[name]:  # as earlier releases know it
                    del table[name]
        (directory / DELTA_FILE).write_text(
            dump_document("delta", self.version, body, DeltaManifest, DeltaManifest.check)
        )


@dataclass(frozen=True)
class DeltaTable:
    """A table's rows in a delta: arrays that are mapped from its files.

    Args:
        ids: int64 ``(n,)``, ascending, of rows that are new or have changed.
        weights: float32 ``(n, dim)``, theirs.
        deleted: int64 ``(m,)``, ascending, of rows that are gone. Some may never have been there.
        headers: uint32 ``(n, 2)``, when and how often the rows were updated; None where rows of the table do not die.
        ladder: all rows that it has dead are gone, whether the delta names them or not; None in the same case.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    deleted: npt.NDArray[np.int64]
    headers: Headers | None = None
    ladder: Ladder | None = None


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

    def read_file(self, name: str) -> bytes:
        """The contents of one of `files`, as they were written. Raises CorruptionError."""
        return self.manifest.files[name].read(self.path / name)

    @property
    def files(self) -> Sequence[str]:
        """What it carries besides rows."""
        return sorted(self.manifest.files.keys() - self.manifest.arrays())

    def follows(self, history: Sequence[str]) -> bool:
        """Whether what is at the last state of `history`, ids of states, gets to this one by applying the delta.

        So it is if the store was in that state at `base` or later: the delta holds all that changed since.
        """
        return bool(history) and history[-1] in self.line

    @staticmethod
    def read(path: str | os.PathLike[str], private: Path | None = None) -> "Delta":
        """Reads and checks a delta; its arrays stay on disk.

        Args:
            path: its directory, which must stay as it is for as long as the arrays are in use.
            private: a directory of the caller's for copies of the arrays, without names: then `path` may change.

        Raises:
            ValueError: `path` is none.
            CorruptionError: it is damaged, contradicts itself, or is of a later format.
            OutOfSpaceError, DamoError: it cannot be read, or not be copied.
        """
        path = Path(path).absolute()
        manifest = DeltaManifest.read(path)
        with os_errors(f"cannot read the delta {path}"):
            for name, expected in manifest.files.items():
                _check_file(path / name, expected)
            tables = {name: _read_table(path, table, manifest.step, private) for name, table in manifest.tables.items()}
        return Delta(path, manifest, tables)


def _check_file(file: Path, expected: FileEntry) -> None:
    try:
        size = check_regular(file).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptionError(f"{file} is missing") from error
    except NotRegularError as error:
        raise CorruptionError(f"{file} is damaged: {error}") from error
    if size != expected.size:
        raise CorruptionError(f"{file} is damaged: expected {expected.size} bytes, found {size}")
    if (found := FileEntry.of(file)) != expected:
        raise CorruptionError(f"{file} is damaged: expected the SHA-256 {expected.sha256}, found {found.sha256}")


def _read_table(path: Path, table: TableChanges, step: int, private: Path | None) -> DeltaTable:
    files = [path / name for name in array_files(table.number)]
    ids = map_array(files[0], np.int64, (table.changed,), private)
    weights = map_array(files[1], np.float32, (table.changed, table.dim), private)
    deleted = map_array(files[2], np.int64, (table.deleted,), private)
    for file, array in ((files[0], ids), (files[2], deleted)):
        if any(bool((block[1:] <= block[:-1]).any()) for block in _blocks(array, overlap=1)):
            raise CorruptionError(f"{file} is damaged: its ids do not ascend")
    if not all(bool(np.isfinite(block).all()) for block in _blocks(weights)):
        raise CorruptionError(f"{files[1]} is damaged: it has weights that are NaN or infinite")
    if len(ids) and any(bool((ids[_places(ids, block)] == block).any()) for block in _blocks(deleted)):
        raise CorruptionError(f"{files[2]} is damaged: it has ids that {files[0].name} has, too")
    if not table.ladder:
        return DeltaTable(ids, weights, deleted)
    file, ladder = path / header_file(table.number), Ladder(tuple(table.ladder))
    headers = map_array(file, np.uint32, (table.changed, 2), private)
    for first, block in _blocks_with_places(headers):
        if bool((block[:, 0] > step).any()):
            raise CorruptionError(f"{file} is damaged: it has rows of steps after {step}, where the delta leads")
        if bool(ladder.dead(block, ids[first : first + len(block)]).any()):
            raise CorruptionError(f"{file} is damaged: it has rows that are dead by the delta's own ladder")
    return DeltaTable(ids, weights, deleted, headers, ladder)


def _places(ascending: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Where each value is, if it is anywhere. REQUIRES: there is one to find."""
    return np.minimum(ascending.searchsorted(values), len(ascending) - 1)


def _blocks(array: npt.NDArray[Any], overlap: int = 0) -> Iterator[npt.NDArray[Any]]:
    """Parts of an array, so that what is computed of one needs little memory. Each begins with the end of the last."""
    for first, block in _blocks_with_places(array):
        yield array[max(first - overlap, 0) : first + len(block)]


def _blocks_with_places(array: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The same, and where each begins."""
    rows = max(_BLOCK_BYTES // array[:1].nbytes, 1) if len(array) else 1
    for first in range(0, len(array), rows):
        yield first, array[first : first + rows]
