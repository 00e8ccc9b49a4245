"""A checkpoint without some of its rows, in the place of the one that had them.

It is of the same state, step and sequence as before, and of the same line of states: whatever was made to go on from
it does. Of a row that is gone it has a deletion record of its table's last update, so that servers hear of that by the
first delta that leads on from there.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import build_directory, remove_directory
from damo_torchrec.checkpoints.document import shown
from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.in_use import holders_of, unused
from damo_torchrec.checkpoints.known_digests import KnownDigests
from damo_torchrec.checkpoints.layout import FORGOTTEN_FILE, MANIFEST_FILE, ROWS, life_file, logs
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.regular_file import is_directory, is_regular
from damo_torchrec.checkpoints.rows_copy import copy_file
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Wanted
from damo_torchrec.errors import CorruptionError, DamoError
from damo_torchrec.files import write_file

WHAT = "checkpoint"


def erase_from_checkpoint(
    checkpoint: Path, wanted: Wanted, report: ForgetReport, *, remove: bool = False, what: str = WHAT
) -> None:
    """Has nothing left of the wanted rows in a checkpoint, and says so in the report, or why that cannot be.

    Interrupted, it leaves the checkpoint as it was or as it is to be, and what `clear_unfinished` removes.

    Args:
        checkpoint: which.
        wanted: rows.
        report: gets what was done. With its `dry_run` nothing is.
        remove: whether the checkpoint goes, if it has any of them, instead of being written anew.
        what: the report calls it.
    """
    try:
        manifest = Manifest.read(checkpoint)
        manifest.check_files(checkpoint, tables=False, logs=False, records=False)
        lives = _lives(checkpoint, manifest)
        found = find_rows(checkpoint / ROWS, manifest, wanted, lives)
        if not found.held:
            return
        rows = sum(map(len, found.held.values()))
        done = "removed" if remove else "rewritten"
        if report.dry_run:
            report.erased.append(Erased(checkpoint, what, done, rows))
            return
        with ExitStack() as stack:
            # Who makes a working copy of it holds the directory, who reads it the manifest.
            for held in (checkpoint, checkpoint / MANIFEST_FILE):
                if not stack.enter_context(unused(held)):
                    report.leave(checkpoint, what, f"{holders_of(held)} reads it: close that, and forget again")
                    return
            files = {(file := checkpoint / ROWS / name): os.lstat(file) for name in found.files}
            if remove:
                remove_directory(checkpoint, WHAT)
            else:
                build_directory(checkpoint, WHAT, _filler(checkpoint, manifest, found, lives), may_replace=is_directory)
        report.note_removed(files)
        report.erased.append(Erased(checkpoint, what, done, rows))
    except CorruptionError as error:
        report.leave(checkpoint, what, f"it is damaged, and may hold them: {error}. Repair it elsewhere, or remove it")
    except (DamoError, OSError) as error:
        report.leave(checkpoint, what, f"it holds them, or may: {error}")


def _lives(checkpoint: Path, manifest: Manifest) -> dict[int, _core.LifeWithout]:
    """By table number. Raises CorruptionError."""
    lives = {}
    for name, content in manifest.read_lives(checkpoint).items():
        table, life = manifest.tables[name], _core.LifeWithout(content)
        if life.rows != table.rows:
            raise CorruptionError(f"the life of table {shown(name)} has {life.rows} rows, expected {table.rows}")
        lives[table.number] = life
    return lives


def find_rows(
    rows: Path, manifest: Manifest, wanted: Wanted, lives: Mapping[int, _core.LifeWithout] | None = None
) -> _core.FoundRows:
    """What a directory of rows has of the wanted ones, deleted and dead ones and sightings too.

    Args:
        rows: the directory.
        manifest: of the checkpoint that it is of.
        wanted: rows.
        lives: by table number. What is found, and lives, is taken out of them. Without, all rows count as living.

    Raises:
        DamoError, OSError: they cannot be read.
    """
    # Also under the number that a table had before it was converted, should compactions not have come by since.
    tables = {number: wanted.of_table("", number).tolist() for number in wanted.numbers}
    tables |= {entry.number: wanted.of_table(name, entry.number).tolist() for name, entry in manifest.tables.items()}
    with tempfile.TemporaryDirectory(prefix="damo_torchrec-no-logs-") as empty:
        asked = {number: ids for number, ids in tables.items() if ids}
        return _core.find_rows(str(rows), [str(log) for log in logs(rows)], empty, asked, dict(lives or {}))


def _filler(
    checkpoint: Path, manifest: Manifest, found: _core.FoundRows, lives: Mapping[int, _core.LifeWithout]
) -> Callable[[Path], None]:
    """What fills a new directory with the checkpoint but for the rows that were found, which `lives` are without."""
    digests = KnownDigests()
    digests.note(checkpoint, manifest.files)
    steps = dict.fromkeys(found.held, 0) | {entry.number: entry.iter for entry in manifest.tables.values()}
    tables = {
        name: replace(entry, rows=entry.rows - len(found.rows.get(entry.number, ())))
        for name, entry in manifest.tables.items()
    }
    renewed = {life_file(number): life.bytes for number, life in lives.items() if number in found.held}

    def is_part(name: str) -> bool:
        return name in manifest.files or name == FORGOTTEN_FILE or name.startswith(f"{ROWS}/")

    def fill(staged: Path) -> None:
        rows, scratch = checkpoint / ROWS, staged / "scratch"
        _core.link_or_copy_rows(str(rows), str(scratch), logs=False)
        _core.erase_rows(str(scratch), [str(log) for log in logs(rows)], found, steps, str(staged / ROWS))
        shutil.rmtree(scratch)
        _copy_beside_rows(checkpoint, staged)
        if found.rows and not (staged / FORGOTTEN_FILE).exists():
            write_file(staged / FORGOTTEN_FILE, b"{}\n")
        written = replace(manifest, tables=tables).with_files(staged, digests.entry_of)
        for name, entry in manifest.files.items():
            if not name.startswith(f"{ROWS}/") and written.files.get(name) != entry:
                raise CorruptionError(f"{checkpoint / name} is damaged: it is not what {MANIFEST_FILE} says")
        for name, content in renewed.items():
            (staged / name).unlink()
            write_file(staged / name, content)
        entries = written.files | {name: FileEntry.of(staged / name) for name in renewed}
        replace(written, files={name: entry for name, entry in entries.items() if is_part(name)}).write(staged)

    return fill


def _copy_beside_rows(checkpoint: Path, staged: Path) -> None:
    """Copies all but rows and manifest; also what the manifest does not name, which is the user's."""
    for entry in checkpoint.iterdir():
        if entry.name in (ROWS, MANIFEST_FILE):
            continue
        if is_regular(entry):
            copy_file(entry, staged / entry.name)
        elif entry.is_symlink():
            os.symlink(os.readlink(entry), staged / entry.name)
        elif entry.is_dir():
            shutil.copytree(entry, staged / entry.name, symlinks=True)
