"""Finding all damage of a checkpoint, or of all checkpoints of a store, without writing anything.

No lock is taken: a checkpoint does not change while another process trains into its store.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.layout import (
    LINEAGE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    ORIGIN_FILE,
    ROWS,
    holds_rows,
    life_file,
    selects_rows,
)
from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import Listed, checkpoints_of, is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.regular_file import is_directory, is_regular
from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.progress import Progress, counting
from damo_torchrec.rescue.dense import load_dense
from damo_torchrec.rescue.records import ids_between, named_table_file, payload_sizes, read_records
from damo_torchrec.rescue.row_files import row_file_finding


@dataclass(frozen=True)
class Verified:
    """What of a checkpoint was found sound, and of how much.

    Args:
        checkpoint: which.
        findings: of damage.
        sound_files: those that no finding names.
        files: that there are, or should be.
        sound_rows: that were read.
        rows: that the manifest says there are; 0 without one.
        tables: of which they are.
    """

    checkpoint: Path
    findings: int
    sound_files: int
    files: int
    sound_rows: int
    rows: int
    tables: int

    def __str__(self) -> str:
        if self.findings == 0:
            return f"{self.checkpoint}: sound: {self.files} files, {self.tables} tables, {self.rows} rows"
        rows = f"{min(self.sound_rows, self.rows)} of {self.rows} rows of {self.tables} tables are sound"
        if self.sound_rows > self.rows:
            rows += f"; {self.sound_rows - self.rows} more may have been dead: nothing tells which"
        return f"{self.checkpoint}: damaged: of it {self.sound_files} of {self.files} files and {rows}"


def verify(path: Path, progress: Progress, verified: Callable[[Verified], None] = lambda _: None) -> Iterator[Finding]:
    """Yields all damage of the checkpoint, or of the store's checkpoints, in `path`.

    Args:
        path: of a checkpoint or a store.
        progress: told how far it is.
        verified: told of each checkpoint, once it has been read, what is sound.

    Raises:
        ValueError: it is neither.
    """
    checkpoints = checkpoints_of(path)
    if not checkpoints:
        yield Finding(path, "a store with a checkpoint", "none")
    if not is_checkpoint(path):
        try:
            Origin.read(path)
        except CorruptionError as error:
            yield Finding(path / ORIGIN_FILE, "where the store's rows come from", str(error))
    for checkpoint in checkpoints:
        if checkpoint != path and not is_directory(checkpoint):
            yield Finding(checkpoint, "the directory of a checkpoint", "a link, or no directory")
            continue
        yield from _verify_checkpoint(checkpoint, progress, verified)


def _verify_checkpoint(checkpoint: Path, progress: Progress, verified: Callable[[Verified], None]) -> Iterator[Finding]:
    manifest, unreadable = None, []
    try:
        manifest = Manifest.read(checkpoint)
    except CorruptionError as error:
        unreadable.append(Finding(checkpoint / MANIFEST_FILE, "a manifest", str(error)))
    damaged = []
    sound_rows: dict[str, int] = {}
    for finding in chain(unreadable, _findings(checkpoint, manifest, progress, sound_rows)):
        damaged.append(finding.path)
        yield finding
    tables = manifest.tables if manifest is not None else {}
    named = {checkpoint / name for name in manifest.files} if manifest is not None else set()
    files = {file for file in checkpoint.rglob("*") if file.is_file()} | named
    verified(
        Verified(
            checkpoint=checkpoint,
            findings=len(damaged),
            sound_files=len(files.difference(damaged)),
            files=len(files),
            sound_rows=sum(sound_rows.values()),
            rows=sum(table.rows for table in tables.values()),
            tables=len(tables),
        )
    )


def _findings(
    checkpoint: Path, manifest: Manifest | None, progress: Progress, sound_rows: dict[str, int]
) -> Iterator[Finding]:
    damaged = set()
    for finding in _file_findings(checkpoint, manifest, progress):
        damaged.add(finding.path)
        yield finding
    if manifest is not None:
        yield from _document_findings(checkpoint, manifest, damaged)
    yield from _row_findings(checkpoint, manifest, damaged, progress, sound_rows)


def _file_findings(checkpoint: Path, manifest: Manifest | None, progress: Progress) -> Iterator[Finding]:
    """Files that are missing, not as they were written, or too many; one finding at most for each."""
    damaged = set()
    if manifest is not None:
        for finding in chain(
            manifest.directory_findings(checkpoint), manifest.file_findings(checkpoint, records=False)
        ):
            damaged.add(finding.path)
            yield finding
    rows = checkpoint / ROWS
    if not is_directory(rows):
        if manifest is None:
            yield Finding(rows, "a directory of rows", "none")
        return
    named = {checkpoint / name for name in manifest.files} if manifest is not None else set()
    try:
        files = sorted(rows.iterdir())
    except OSError:  # the manifest's directory_findings tell
        return
    for done, file in enumerate(files):
        progress(f"files of {checkpoint}", done, len(files))
        if file in damaged:
            continue
        if manifest is not None and file not in named:
            found: Finding | None = Finding(file, "no file that the manifest does not name", "one")
        else:  # what is damaged in it, somebody may have hashed anew
            found = row_file_finding(file)
        if found is not None:
            yield found


def _document_findings(checkpoint: Path, manifest: Manifest, damaged: set[Path]) -> Iterator[Finding]:
    """What of the small files beside the rows is as it was written, but cannot be read."""
    reading: dict[str, Callable[[], object]] = {
        ORIGIN_FILE: lambda: Listed.read(checkpoint),
        LINEAGE_FILE: lambda: Lineage.read(checkpoint, manifest),
        MODEL_FILE: lambda: load_dense(checkpoint, manifest),
    }
    for name, read in reading.items():
        if name in manifest.files and checkpoint / name not in damaged:
            try:
                read()
            except CorruptionError as error:
                yield Finding(checkpoint / name, f"what belongs to the checkpoint {manifest.id}", str(error))


def _row_findings(
    checkpoint: Path, manifest: Manifest | None, damaged: set[Path], progress: Progress, sound: dict[str, int]
) -> Iterator[Finding]:
    """What is wrong with rows, but for what follows from damage of files that is known already.

    Counts those that can be read in `sound`, by table.
    """
    rows = checkpoint / ROWS
    if not is_directory(rows) or rows in damaged or any(map(selects_rows, damaged)):
        return
    if not all(map(is_regular, rows.iterdir())):
        return  # RocksDB may open other rows than these, or never end
    tables = manifest.tables if manifest is not None else {}
    recounts, unreadable = _recounts(checkpoint, tables, manifest)
    yield from (finding for finding in unreadable.values() if finding.path not in damaged)
    try:
        reader = _core.RecordReader(str(rows), payload_sizes(tables), recounts)
    except DamoError as error:
        file = named_table_file(rows, str(error))
        known = file in damaged if file is not None else any(map(holds_rows, damaged))
        if not known:
            yield Finding(file or rows, "rows that RocksDB opens", str(error))
        return
    if manifest is None:
        return
    complete = True
    read = counting(progress, f"rows of {checkpoint}", sum(table.rows for table in tables.values()))
    for gap in read_records(reader, read=read):
        complete = False
        file = named_table_file(rows, gap.reason)
        if file not in damaged:
            ranges = [f"sound {ids}" for ids in ids_between(gap.first, gap.end, tables)]
            yield Finding(file or rows, "; ".join(ranges) or "records of the manifest's tables alone", gap.reason)
    tallies = reader.tallies
    for name, table in tables.items():
        found = sound[name] = tallies[table.number].records if table.number in tallies else 0
        if complete and name not in unreadable and found != table.rows:
            yield Finding(rows, f"{table.rows} rows of table {name!r}", str(found))
        if complete and table.number in recounts and found != (counted := recounts[table.number].rows_before):
            yield Finding(checkpoint / life_file(table.number), f"{found} living rows of table {name!r}", str(counted))


def _recounts(
    checkpoint: Path, tables: Mapping[str, TableEntry], manifest: Manifest | None
) -> tuple[dict[int, _core.LifeRecount], dict[str, Finding]]:
    """What counts the rows that live, by table number; and why that cannot be done, by table."""
    recounts, unreadable = {}, {}
    for name, table in tables.items():
        if manifest is None or table.life is None:
            continue
        file = life_file(table.number)
        try:
            recounts[table.number] = _core.LifeRecount(manifest.read_file(checkpoint, file), table.iter)
        except CorruptionError as error:
            unreadable[name] = Finding(checkpoint / file, f"which rows of table {name!r} are dead", str(error))
    return recounts, unreadable
