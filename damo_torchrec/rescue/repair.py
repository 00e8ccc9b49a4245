"""Saving what can be saved of a damaged checkpoint, in a new one.

Rows are read in the order of their keys. Where a block cannot be read, the ids that it may hold are lost, whatever
other files say of them, so that no older value takes the place of the newest. Only if a whole table file is lost, or
some of a journal, are rows kept that may be older than they were, and the losses say so.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    MANIFEST_FILE,
    MODEL_FILE,
    MODULE_FILE,
    ORIGIN_FILE,
    ROWS,
    holds_rows,
    life_file,
)
from damo_torchrec.checkpoints.listing import checkpoints_at, checkpoints_of, is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.row_counts import recounts_of
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import write_file
from damo_torchrec.progress import Progress, counting
from damo_torchrec.rescue.dense import dump_dense, load_dense
from damo_torchrec.rescue.records import IdRange, ids_between, named_table_file, payload_sizes, read_records
from damo_torchrec.rescue.salvage import open_rows


@dataclass(frozen=True)
class Loss:
    """Ids of which a row, or a deletion record, may be missing.

    Args:
        ids: which.
        path: the damaged file.
        reason: what is wrong with it.
        may_be_older: whether those that were saved may be older than they were, rows that had been deleted among them;
            otherwise what was saved is as it was.
    """

    ids: IdRange
    path: Path
    reason: str
    may_be_older: bool

    def __str__(self) -> str:
        what = "may be older or missing" if self.may_be_older else "lost"
        return f"{self.ids}: {what}: {self.path}: {self.reason}"


@dataclass(frozen=True)
class Repair:
    """What `repair` saved, and what it could not.

    Args:
        source: the damaged checkpoint.
        target: the new one.
        rows: that were saved, by table.
        expected: rows that there were, by table; empty if the manifest did not tell.
        losses: of rows and of deletion records.
        findings: what else is not in the new checkpoint, or not certain.
    """

    source: Path
    target: Path
    rows: dict[str, int]
    expected: dict[str, int]
    losses: list[Loss]
    findings: list[Finding]


def repair(path: Path, target: Path, progress: Progress, schemas: Path | None = None) -> Repair:
    """Makes `target` a checkpoint of all that can be read of the one in `path`, which is left as it is.

    Args:
        path: a checkpoint, or a store: its newest checkpoint.
        target: a new directory.
        progress: told how far it is.
        schemas: a checkpoint of the same store that says what the tables are, should the manifest be damaged. None: the
            others in the store, if they agree.

    Raises:
        ValueError: `path` is neither store nor checkpoint, `schemas` is none, or `target` exists or lies in
            the damaged store.
        CorruptionError: nothing says what the tables are, or which checkpoint is the newest.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    store = path if StoreDirectory.is_store(path) else path.absolute().parent.parent
    if StoreDirectory.is_store(store) and target.resolve().is_relative_to(store.resolve()):
        raise ValueError(f"{target} is inside the damaged store {store}: name a place outside of it")
    source = _newest(path)
    job = _Job(source, schemas, progress)
    build_directory(target, "checkpoint", job.fill)
    expected = {name: table.rows for name, table in job.manifest.tables.items()} if job.has_manifest else {}
    return Repair(source, target, job.rows, expected, job.losses, job.findings)


class _Job:
    """One repair."""

    def __init__(self, source: Path, schemas: Path | None, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self.rows: dict[str, int] = {}
        self.losses: list[Loss] = []
        self.findings: list[Finding] = []
        try:
            self.manifest, self.has_manifest = Manifest.read(source), True
        except CorruptionError as error:
            self.manifest, self.has_manifest = _borrowed_manifest(source, schemas, error), False
            self._find(
                MANIFEST_FILE,
                "a manifest",
                f"{error}. Tables are as other checkpoints have them, and steps those of the rows' last updates",
            )

    def fill(self, staged: Path) -> None:
        """Makes the new directory `staged` the repaired checkpoint."""
        scratch = staged / "scratch"
        scratch.mkdir()
        lives = self._lives()
        recounts = recounts_of(self.manifest, lives)
        tallies = self._save_rows(staged / ROWS, scratch, recounts)
        shutil.rmtree(scratch)
        tables = {name: self._saved(table, tallies) for name, table in self.manifest.tables.items()}
        for name in tables.keys() - lives.keys():
            tables[name] = replace(tables[name], life=None)
        for number, recount in recounts.items():
            write_file(staged / life_file(number), recount.bytes)
        self.rows = {name: table.rows for name, table in tables.items()}
        self._find_uncounted(tables)
        step = self.manifest.step if self.has_manifest else max((table.iter for table in tables.values()), default=0)
        repaired = replace(self.manifest, tables=tables, step=step, id=new_id(), files={})
        self._save_dense(staged, repaired)
        self._save_origin(staged)
        repaired.with_files(staged).write(staged)

    def _lives(self) -> dict[str, bytes]:
        """What is known of the lives of rows: the checkpoint's own, or that of the newest one before it that has it."""
        lives = {}
        for name, table in self.manifest.tables.items():
            if table.life is None:
                continue
            file = life_file(table.number)
            try:
                if not self.has_manifest:
                    raise CorruptionError("no manifest has its checksum")
                lives[name] = self.manifest.read_file(self._source, file)
                _core.LifeRecount(lives[name], table.iter)
            except CorruptionError as error:
                lives.pop(name, None)
                sibling, life = _life_elsewhere(self._source, name, table, self.manifest.sequence)
                found = f"{error}. Rows that had gone may be there again"
                if sibling is not None:
                    lives[name] = life
                    self._find(file, "which rows are dead", f"{found}, unless they had gone by {sibling} already")
                else:
                    self._find(file, "which rows are dead", f"{found}, and they live for ever until options say other")
        return lives

    def _save_rows(
        self, target: Path, scratch: Path, recounts: dict[int, _core.LifeRecount]
    ) -> dict[int, _core.RecordTally]:
        rows, tables = self._source / ROWS, self.manifest.tables
        if rows.is_symlink():
            raise CorruptionError(f"{rows} is a symbolic link, expected a directory of rows")
        files = self.manifest.files.items()
        sizes = {Path(name).name: file.size for name, file in files if holds_rows(name)}
        reader, lost_files = open_rows(
            rows, sizes if self.has_manifest else None, payload_sizes(tables), scratch / "rebuilt", recounts
        )
        for lost in lost_files:
            self._lose(lost.first, lost.end, lost.path, lost.reason, lost.may_be_older)
        writer = _core.RecordWriter(str(scratch / "new"))
        if reader is not None:
            total = sum(table.rows for table in tables.values())
            for gap in read_records(reader, writer, counting(self._progress, f"rows of {self._source}", total)):
                self._lose(gap.first, gap.end, named_table_file(rows, gap.reason) or rows, gap.reason)
        writer.finish(str(target))
        return {} if reader is None else reader.tallies

    def _lose(self, first: int, end: int, path: Path, reason: str, may_be_older: bool = False) -> None:
        """Notes that records of the keys from `first` on, below `end`, are lost."""
        losses = [Loss(ids, path, reason, may_be_older) for ids in ids_between(first, end, self.manifest.tables)]
        self.losses.extend(losses)
        if not losses:
            self.findings.append(Finding(path, "records of known tables", reason))

    def _saved(self, table: TableEntry, tallies: dict[int, _core.RecordTally]) -> TableEntry:
        """The table as the repaired checkpoint has it."""
        tally = tallies.get(table.number)
        rows = tally.records if tally is not None else 0
        if self.has_manifest:
            return replace(table, rows=rows)
        return replace(table, rows=rows, iter=tally.last_step if tally is not None else 0)

    def _find_uncounted(self, tables: dict[str, TableEntry]) -> None:
        """Finds tables that have other rows than the manifest says, though nothing of them was lost."""
        lossy = {loss.ids.table for loss in self.losses if not loss.ids.deletions}
        for name, table in self.manifest.tables.items():
            if self.has_manifest and name not in lossy and table.rows != tables[name].rows:
                self._find(ROWS, f"{table.rows} rows of table {name!r}", str(tables[name].rows))

    def _save_dense(self, staged: Path, repaired: Manifest) -> None:
        """Writes the dense part, now of the checkpoint `repaired`, if it is sound."""
        if not self.has_manifest:
            if (self._source / MODEL_FILE).exists():
                self._find(MODEL_FILE, "a manifest with its checksum", "none: the dense part is left out")
            return
        if MODEL_FILE not in self.manifest.files:
            return
        try:
            dense = load_dense(self._source, self.manifest)
        except CorruptionError as error:
            self._find(MODEL_FILE, f"the dense part of the checkpoint {self.manifest.id}", f"{error}; it is left out")
            return
        write_file(staged / MODEL_FILE, dump_dense({**dense, "checkpoint_id": repaired.id}))
        if MODULE_FILE not in self.manifest.files:
            return
        try:
            pickled = self.manifest.read_file(self._source, MODULE_FILE)
        except CorruptionError as error:
            self._find(MODULE_FILE, "the model's pickle", f"{error}; it is left out")
            return
        write_file(staged / MODULE_FILE, pickled)

    def _save_origin(self, staged: Path) -> None:
        """Has the repaired checkpoint be of the line of states of the damaged one; nobody removes it."""
        try:
            origin = Origin.read(self._source)
        except CorruptionError as error:
            self._find(ORIGIN_FILE, "the line of states that the checkpoint is of", f"{error}; it is left out")
            return
        if origin is not None:
            write_file(staged / ORIGIN_FILE, Origin(origin.line).dump())

    def _find(self, name: str, expected: str, found: str) -> None:
        self.findings.append(Finding(self._source / name, expected, found))


def _newest(path: Path) -> Path:
    """The checkpoint `path`, or the newest one of the store `path`, damaged or not."""
    if checkpoints_of(path) == [path]:
        return path
    listed, damaged = CheckpointLine.of_store(path).read()
    candidates = [*(checkpoint.path for checkpoint in listed), *damaged]
    if not candidates:
        raise CorruptionError("the store has no checkpoint to repair")
    if len(candidates) > 1:
        for error in damaged.values():
            raise CorruptionError(f"{error}. It may be the newest checkpoint: name the one to repair") from error
    return candidates[-1]


def _life_elsewhere(source: Path, name: str, table: TableEntry, sequence: int) -> tuple[Path | None, bytes]:
    """What the newest checkpoint beside `source` that is older, and has it, knows of the life of a table's rows."""
    found: tuple[Path | None, bytes] = None, b""
    newest = -1
    for path in checkpoints_at(source.parent) if source.parent.name == CHECKPOINTS else []:
        try:
            manifest = Manifest.read(path)
            other = manifest.tables.get(name)
            if path == source or other is None or other.life is None or other.number != table.number:
                continue
            life = manifest.read_file(path, life_file(table.number))
            _core.LifeRecount(life, table.iter)
        except CorruptionError:
            continue
        if newest < manifest.sequence <= sequence and other.iter <= table.iter:
            newest, found = manifest.sequence, (path, life)
    return found


def _borrowed_manifest(source: Path, schemas: Path | None, error: CorruptionError) -> Manifest:
    """What other checkpoints of the store say of its seed and its tables."""
    if schemas is not None:
        if not is_checkpoint(schemas):
            raise ValueError(f"{schemas} is not a checkpoint: it has no {MANIFEST_FILE}")
        return Manifest.read(schemas)
    in_store = source.parent.name == CHECKPOINTS
    others = [Manifest.read(path) for path in checkpoints_at(source.parent)] if in_store else []
    if not others:
        raise CorruptionError(
            f"{error}. Without it, a checkpoint of the same store (--schema) must say what tables are"
        )
    tables: dict[str, TableEntry] = {}
    for manifest in others:
        for name, table in manifest.tables.items():
            known = tables.setdefault(name, table)
            if (known.number, known.schema) != (table.number, table.schema):
                raise CorruptionError(f"{error}. Checkpoints differ in what table {name!r} is: name one by --schema")
    if len({table.number for table in tables.values()}) < len(tables):
        raise CorruptionError(f"{error}. Checkpoints differ in what tables there are: name one by --schema")
    return replace(others[-1], tables=tables, next_table_number=max(m.next_table_number for m in others))
