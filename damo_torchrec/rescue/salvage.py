"""Salvage of rows of which files are damaged: opening what is left, and telling what the records of lost files were."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import file_digest
from damo_torchrec.checkpoints.layout import is_log, logs, read_by_rocksdb, table_files
from damo_torchrec.checkpoints.regular_file import is_regular
from damo_torchrec.errors import DamoError
from damo_torchrec.rescue.records import END_OF_KEYS, key_number, named_table_file
from damo_torchrec.rescue.row_files import row_file_finding


@dataclass(frozen=True)
class LostFile:
    """A table file, or log, of which not all can be read. The keys of its records are from `first` on, below `end`.

    Args:
        path: the file, or the directory of rows if nothing tells which it is.
        reason: what is wrong with it.
        may_be_older: whether other files may hold older records of the same keys, which now are the newest.
    """

    path: Path
    reason: str
    first: int = 0
    end: int = END_OF_KEYS
    may_be_older: bool = True


def open_rows(
    rows: Path,
    sizes: Mapping[str, int] | None,
    payload_sizes: Mapping[int, int],
    scratch: Path,
    recounts: Mapping[int, _core.LifeRecount],
) -> tuple[_core.RecordReader | None, list[LostFile]]:
    """Opens what can be opened of the rows in `rows`: all of them, or those of the table files that are left.

    Args:
        rows: a checkpoint's; nothing is changed there.
        sizes: in bytes, of the table files and logs that there should be, by name. None: not known.
        payload_sizes: by table number.
        scratch: a new directory, for a database of the table files that are left.
        recounts: what counts the rows that live, by table number.

    Returns: None for a reader if there are no records; and the files that are lost.
    """
    there = {file.name: file.stat().st_size for file in table_files(rows) if is_regular(file)}
    if sizes is None:
        log_sizes = {file.name: file.stat().st_size for file in _different_logs(rows)}
    else:
        log_sizes = {name: size for name, size in sizes.items() if is_log(name)}
        sizes = {name: size for name, size in sizes.items() if not is_log(name)}
    damages = {rows / name: _damage(rows / name, size) for name, size in log_sizes.items()}
    # Of which keys the records are that are missing, nothing tells.
    lost = [LostFile(log, reason) for log, reason in damages.items() if reason is not None]
    # RocksDB would replay every log that is there, and ends the process where one has what another has, too.
    strange = {log.name for log in logs(rows)} - log_sizes.keys()
    listed = _listed_files(rows, there, sizes) if not strange else None
    refused, refusal = None, ""
    if listed is not None and not lost:
        try:
            return _core.RecordReader(str(rows), dict(payload_sizes), dict(recounts)), []
        except DamoError as error:
            refused, refusal = named_table_file(rows, str(error)), str(error)
    if sizes is None and listed is None:
        lost.append(LostFile(rows, "which table files it had is not known"))
    if sizes is None:
        sizes = there if listed is None else {name: file.size for name, file in listed.items()}
    tables = [rows / n for n, size in sizes.items() if there.get(n) == size and rows / n != refused]
    kept = _rebuild(tables + [log for log in damages if is_regular(log)], scratch)
    for name, size in sorted(sizes.items()):
        if name not in kept:
            reason = _damage(rows / name, size)
            if reason is None and rows / name == refused:  # its blocks are sound, but not those that it should have
                lost.append(LostFile(rows, f"{refusal}. So others may be of another checkpoint, too"))
            lost.append(_lost_file(rows / name, reason or refusal or "RocksDB leaves it out", listed, kept))
    return (_core.RecordReader(str(scratch), dict(payload_sizes), dict(recounts)) if kept else None), lost


def _different_logs(rows: Path) -> list[Path]:
    """The logs in `rows`, of equal ones the first."""
    by_content = {file_digest(log): log for log in sorted(logs(rows), reverse=True) if is_regular(log)}
    return sorted(by_content.values())


def _listed_files(
    rows: Path, there: Mapping[str, int], sizes: Mapping[str, int] | None
) -> dict[str, _core.TableFile] | None:
    """What RocksDB's manifest says of the table files, by name. None if it is unreadable, or speaks of other files."""
    if not all(is_regular(file) for file in rows.glob("*") if read_by_rocksdb(file)):
        return None  # RocksDB would read something else through a link, or wait for a FIFO
    try:
        listed = {file.name: file for file in _core.list_table_files(str(rows))}
    except DamoError:
        return None
    is_of_these = there.keys() <= listed.keys() if sizes is None else sizes.keys() == listed.keys()
    return listed if is_of_these else None


def _rebuild(files: list[Path], scratch: Path) -> set[str]:
    """Makes `scratch` a database of the records of those table files that can be read from end to end, and of logs.

    Returns: names of table files, those among them.
    """
    scratch.mkdir()
    for file in files:
        try:
            os.link(file, scratch / file.name)
        except OSError:
            shutil.copyfile(file, scratch / file.name)
    if not files:
        return set()
    _core.rebuild_rows(str(scratch))
    return {file.name for file in _core.list_table_files(str(scratch))}


def _damage(file: Path, size: int) -> str | None:
    if not is_regular(file):
        return "missing, or no regular file"
    if file.stat().st_size != size:
        return f"expected {size} bytes, found {file.stat().st_size}"
    finding = row_file_finding(file)
    return None if finding is None else finding.found


def _lost_file(file: Path, reason: str, listed: dict[str, _core.TableFile] | None, kept: set[str]) -> LostFile:
    if listed is None or file.name not in listed:
        return LostFile(file, reason)
    own = listed[file.name]
    others = [listed[name] for name in kept if name in listed]
    older = any(o.oldest < own.newest and o.smallest <= own.largest and own.smallest <= o.largest for o in others)
    return LostFile(file, reason, key_number(own.smallest), key_number(own.largest) + 1, older)
