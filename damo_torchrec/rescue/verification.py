"""Finding all damage of a checkpoint, or of all checkpoints of a store, without writing anything.

No lock is taken: a checkpoint does not change while another process trains into its store.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.checkpoint_directory import CHECKPOINTS, ROWS, is_checkpoint
from damo_torchrec.checkpoints.dense_part import MODEL_FILE, load_dense
from damo_torchrec.checkpoints.manifest import FILE_NAME, Finding, Manifest
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.rescue.records import Progress, counting, ids_between, named_table_file, payload_sizes, read_records

# The end of a table file: its format version, and RocksDB's sign that it is one.
_FOOTER_END = struct.Struct("<IQ")
_TABLE_FORMAT_VERSION = 5


def verify(path: Path, progress: Progress) -> Iterator[Finding]:
    """Yields all damage of the checkpoint, or of the store's checkpoints, in `path`.

    Raises:
        ValueError: it is neither.
    """
    checkpoints = checkpoints_of(path)
    if not checkpoints:
        yield Finding(path, "a store with a checkpoint", "none")
    for checkpoint in checkpoints:
        yield from _verify_checkpoint(checkpoint, progress)


def checkpoints_of(path: Path) -> list[Path]:
    """The checkpoint `path`, or the checkpoints of the store `path`, damaged or not, by name.

    Raises:
        ValueError: it is neither.
    """
    if is_checkpoint(path):
        return [path]
    if not path.is_dir() or not StoreDirectory.is_store(path):
        raise ValueError(f"{path} is neither a store nor a checkpoint")
    return sorted(entry for entry in (path / CHECKPOINTS).glob("[!.]*") if entry.is_dir())


def row_file_finding(file: Path) -> Finding | None:
    """What is wrong with a table file or a log, by itself."""
    if file.suffix == ".log":
        try:
            _core.verify_log_file(str(file))
        except DamoError as error:
            return Finding(file, "a log of RocksDB with records that match their checksums", str(error))
    return table_file_finding(file) if file.suffix == ".sst" else None


def table_file_finding(file: Path) -> Finding | None:
    """What is wrong with a table file, by itself."""
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


def _verify_checkpoint(checkpoint: Path, progress: Progress) -> Iterator[Finding]:
    manifest = None
    try:
        manifest = Manifest.read(checkpoint)
    except CorruptionError as error:
        yield Finding(checkpoint / FILE_NAME, "a manifest", str(error))
    damaged = set()
    for finding in _file_findings(checkpoint, manifest, progress):
        damaged.add(finding.path)
        yield finding
    if manifest is not None:
        yield from _dense_findings(checkpoint, manifest, damaged)
    yield from _row_findings(checkpoint, manifest, damaged, progress)


def _file_findings(checkpoint: Path, manifest: Manifest | None, progress: Progress) -> Iterator[Finding]:
    """Files that are missing, not as they were written, or too many; one finding at most for each."""
    named = {}
    if manifest is not None:
        yield from (found := {finding.path: finding for finding in manifest.file_findings(checkpoint)}).values()
        named = {checkpoint / name: found.get(checkpoint / name) for name in manifest.files}
    rows = checkpoint / ROWS
    if not rows.is_dir():
        yield Finding(rows, "a directory of rows", "none")
        return
    files = sorted(rows.iterdir())
    for done, file in enumerate(files):
        progress(f"files of {checkpoint}", done, len(files))
        if manifest is not None and file not in named:
            yield Finding(file, "no file that the manifest does not name", "one")
        elif named.get(file) is None and (finding := row_file_finding(file)) is not None:
            yield finding


def _dense_findings(checkpoint: Path, manifest: Manifest, damaged: set[Path]) -> Iterator[Finding]:
    file = checkpoint / MODEL_FILE
    if MODEL_FILE in manifest.files and file not in damaged:
        try:
            load_dense(checkpoint, manifest)
        except CorruptionError as error:
            yield Finding(file, f"the dense part of the checkpoint {manifest.id}", str(error))


def _row_findings(
    checkpoint: Path, manifest: Manifest | None, damaged: set[Path], progress: Progress
) -> Iterator[Finding]:
    """What is wrong with rows, but for what follows from damage of files that is known already."""
    rows = checkpoint / ROWS
    named = [checkpoint / name for name in manifest.files] if manifest is not None else []
    if any(
        file in damaged and (file.name.startswith(("CURRENT", "MANIFEST-")) or file.suffix == ".log") for file in named
    ):
        return  # RocksDB may open other rows than these
    tables = manifest.tables if manifest is not None else {}
    try:
        reader = _core.RecordReader(str(rows), payload_sizes(tables))
    except DamoError as error:
        file = named_table_file(rows, str(error))
        known = file in damaged if file is not None else any(file.suffix in (".sst", ".log") for file in damaged)
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
        found = tallies[table.number].records if table.number in tallies else 0
        if complete and found != table.rows:
            yield Finding(rows, f"{table.rows} rows of table {name!r}", str(found))
