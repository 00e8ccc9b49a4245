"""The manifest of a checkpoint: what its rows are, in one small JSON file. docs/format.md describes it."""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.document import dump_document, parse_versioned, read_document, shown
from damo_torchrec.checkpoints.file_entry import EarlierLogEntry, FileEntry, Finding
from damo_torchrec.checkpoints.layout import (
    MANIFEST_FILE,
    ROWS,
    holds_rows,
    is_log,
    is_table_file,
    life_file,
    read_by_rocksdb,
)
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.rules import check_files, check_id
from damo_torchrec.checkpoints.table_entry import TableEntry, check_tables
from damo_torchrec.errors import CorruptionError

# 2 adds rows of 16-bit weights, 3 logs beside the table files, 4 the SHA-256 of all of these files, 5 tables that have
# another name than when they were made, and AMSGrad's corrected maxima, 6 tables whose rows have a life; the last two
# are written where there is one of these.
FORMAT_VERSION = 6

# Below it are all sequence numbers, and below the other those of checkpoints that a store may go on from.
LAST_SEQUENCE = 2**62
LAST_FOLLOWED_SEQUENCE = LAST_SEQUENCE - 2**32
_HASHES_ALL = 4
_STREAMS = 5
_HASHING_THREADS = 4
_WORTH_THREADS = 64 << 20  # bytes

_Step = Annotated[int, range(2**32)]


def new_id() -> str:
    """An id that no state of any store has."""
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
        id: of the state of the store: checkpoints between which no row has changed may share it.
    """

    seed: Annotated[int, range(-(2**127), 2**127)]
    step: _Step
    sequence: Annotated[int, range(LAST_SEQUENCE)]
    next_table_number: Annotated[int, range(1, 2**31)]
    tables: dict[str, TableEntry]
    files: dict[str, FileEntry] = field(default_factory=dict)
    id: str = field(default_factory=new_id)

    def check(self) -> None:
        """Raises ValueError if its parts, each of their type and in their range, contradict each other."""
        check_id("id", self.id)
        check_files(self.files)
        check_tables(self.tables, self.next_table_number)
        if self.step != (largest := max((table.iter for table in self.tables.values()), default=0)):
            raise ValueError(f"step is {self.step}, but the largest iter of a table is {largest}")
        for name, table in self.tables.items():
            if table.life is not None and life_file(table.number) not in self.files:
                raise ValueError(f"table {shown(name)} has a life, but the files lack {life_file(table.number)}")
        if over := self.impossible_counts():
            raise ValueError(f"the files are too small for the rows of {over}")

    def impossible_counts(self) -> list[str]:
        """Names of tables whose rows can be no more than the files of rows have bytes for, but are."""
        room = sum(entry.size for name, entry in self.files.items() if holds_rows(name))
        total, over = 0, []
        for name, table in self.tables.items():
            total += (bytes_of_rows := table.bytes_of_rows(name))
            if table.rows < 0 or bytes_of_rows > room:
                over.append(name)
        return over or (sorted(self.tables) if total > room else [])

    def with_files(self, directory: Path, entry_of: Callable[[Path], FileEntry] = FileEntry.of) -> "Manifest":
        """This, with an entry for each of the files that are in `directory`, which `entry_of` makes."""
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        return replace(self, files={str(path.relative_to(directory)): entry_of(path) for path in paths})

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json`` into `directory`.

        Raises:
            DamoError: `read` would refuse it.
        """
        body = asdict(self)
        version = self.format_version()
        for table in body["tables"].values():
            if version < _STREAMS:
                del table["schema"]["stream"]
            if table["life"] is None:
                del table["life"]
        document = dump_document("manifest", version, body, Manifest, Manifest.check)
        (directory / MANIFEST_FILE).write_text(document)

    def format_version(self) -> int:
        """The lowest that can say all of it."""
        tables = self.tables.values()
        if any(table.life is not None for table in tables):
            return FORMAT_VERSION
        if any(table.schema.stream or "corrected_max" in table.schema.optimizer for table in tables):
            return _STREAMS
        return _HASHES_ALL

    def check_files(self, directory: Path, *, tables: bool = True, logs: bool = True, records: bool = True) -> None:
        """Raises CorruptionError if a file of the checkpoint `directory` is missing or not as it was written.

        Args:
            directory: the checkpoint's.
            tables: whether table files are read, too; else their size alone is checked.
            logs: the same of logs.
            records: whether those of logs are checked, which takes a while, or are left to who reads them.
        """
        for damage in self.directory_findings(directory):
            raise CorruptionError(
                f"{damage.path} is of another checkpoint than {directory}: expected {damage.expected}, "
                f"found {damage.found}"
            )
        _refuse(self.file_findings(directory, tables=tables, logs=logs, records=records))

    def directory_findings(self, directory: Path) -> Iterator[Finding]:
        """What RocksDB would read in the checkpoint `directory` though it is no file of the checkpoint."""
        rows = directory / ROWS
        if not is_directory(rows):
            yield Finding(rows, "a directory of rows", "a link or a file" if os.path.lexists(rows) else "none")
            return
        try:
            files = sorted(rows.iterdir())
        except OSError as error:
            yield Finding(rows, "a directory that can be read", str(error))
            return
        for file in files:
            if read_by_rocksdb(file) and str(file.relative_to(directory)) not in self.files:
                yield Finding(file, "no file that the manifest does not name", "one")

    def file_findings(
        self, directory: Path, *, tables: bool = True, logs: bool = True, records: bool = True
    ) -> Iterator[Finding]:
        """What is wrong with the files of the checkpoint `directory`: one is missing, or not as it was written.

        Large ones are read by several threads: hashing takes a processor longer than a disk takes to read.
        """
        yield from _findings(
            self.files,
            lambda name: self.files[name].finding(directory / name, tables=tables, logs=logs, records=records),
        )

    def check_rows(self, rows: Path) -> None:
        """Raises CorruptionError if a table file in `rows`, a copy of the checkpoint's, is not as it was written."""
        entries = {Path(name).name: entry for name, entry in self.files.items() if is_table_file(name)}
        _refuse(_findings(entries, lambda name: entries[name].finding(rows / name)))

    def check_logs(self, directory: Path) -> None:
        """Raises CorruptionError if a log of the checkpoint `directory` is not as it was written, by its SHA-256."""
        logs = {name: entry for name, entry in self.files.items() if is_log(name)}
        _refuse(_findings(logs, lambda name: logs[name].finding(directory / name, records=False)))

    def check_can_be_followed(self, directory: Path) -> None:
        """Raises CorruptionError if a store could not go on from the checkpoint `directory` for long."""
        if self.sequence >= LAST_FOLLOWED_SEQUENCE:
            raise CorruptionError(
                f"{directory / MANIFEST_FILE} is damaged: no checkpoint could follow its sequence, {self.sequence}"
            )

    def read_file(self, directory: Path, name: str) -> bytes:
        """The contents of one of `files` in the checkpoint `directory`, which are what was written.

        Raises:
            CorruptionError: `files` does not name it, or it is not as it was written.
        """
        file = directory / name
        if name not in self.files:
            raise CorruptionError(f"{file} is no file of the checkpoint: its manifest does not name it")
        return self.files[name].read(file)

    def read_lives(self, directory: Path) -> dict[str, bytes]:
        """What the engine knows of the lives of rows in the checkpoint `directory`, by table.

        Raises:
            CorruptionError: a file of it is not as it was written.
        """
        lives = {name: life_file(table.number) for name, table in self.tables.items() if table.life is not None}
        return {name: self.read_file(directory, file) for name, file in lives.items()}

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Reads and checks the manifest of the checkpoint `directory`.

        Raises:
            CorruptionError: the file is missing, damaged, or of a later format, or contradicts itself.
        """
        path = directory / MANIFEST_FILE
        try:
            content = read_document(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptionError(f"{directory} is not a checkpoint: it has no {MANIFEST_FILE}") from error
        versions = range(1, FORMAT_VERSION + 1)
        version, manifest = parse_versioned(content, path, "manifest", versions, Manifest, Manifest.check)
        for name, entry in manifest.files.items():
            if entry.sha256 is None and not (version < _HASHES_ALL and holds_rows(name)):
                raise CorruptionError(f"{path} is damaged: it has no SHA-256 of {shown(name)}")
        return manifest if version >= _HASHES_ALL else replace(manifest, files=_earlier(manifest.files))


def _refuse(findings: Iterator[Finding]) -> None:
    """Raises CorruptionError of the first of them, if there is one."""
    for damage in findings:
        raise CorruptionError(
            f"{damage.path} is damaged, or belongs to another checkpoint: "
            f"expected {damage.expected}, found {damage.found}"
        )


def _findings(files: Mapping[str, FileEntry], finding: Callable[[str], Finding | None]) -> Iterator[Finding]:
    if sum(entry.size for entry in files.values()) < _WORTH_THREADS:
        yield from (found for found in map(finding, files) if found is not None)
        return
    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1), "damo-hashing") as pool:
        try:
            yield from (found for found in pool.map(finding, files) if found is not None)
        finally:
            pool.shutdown(cancel_futures=True)


def _earlier(files: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """Entries of a format before 4."""
    return {name: EarlierLogEntry(entry.size, entry.sha256) if is_log(name) else entry for name, entry in files.items()}
