"""How many rows the tables of a checkpoint have, counted: what a manifest of somebody else says may be wrong."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.document import shown
from damo_torchrec.checkpoints.layout import MANIFEST_FILE, ROWS
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.table_entry import NEVER_GIVEN
from damo_torchrec.errors import CorruptionError

_log = logging.getLogger(__name__)
_RECORDS_AT_A_TIME = 65536


def with_possible_counts(manifest: Manifest, checkpoint: Path) -> Manifest:
    """The manifest, with tables counted anew if they cannot have the rows that it says, with a warning.

    An engine goes on counting from what the manifest that it began with says.

    Raises:
        CorruptionError: a row cannot be read.
    """
    wrong = manifest.impossible_counts()
    if not wrong:
        return manifest
    counts = count_rows(checkpoint / ROWS, manifest, manifest.read_lives(checkpoint))
    tables = {name: replace(table, rows=counts[name]) for name, table in manifest.tables.items()}
    for name in wrong:
        _log.warning(
            "table %r would have %d rows, which cannot be: the manifest that the store began with was wrong. It has %d",
            name,
            manifest.tables[name].rows,
            counts[name],
        )
    return replace(manifest, tables=tables)


def check_numbers(rows: Path, manifest: Manifest, *, journal: bool) -> None:
    """Raises CorruptionError if there are rows of tables that the manifest does not know, or none of one that it does.

    A new table would have the former, and the latter would begin anew.

    Args:
        rows: a directory of rows. What logs there are is held in memory meanwhile.
        manifest: what it says of them.
        journal: whether the logs are there, so that no rows are missing.
    """
    reader = _core.RecordReader(str(rows), _payload_sizes(manifest))
    known = {table.number: (name, table.rows) for name, table in manifest.tables.items()}
    for deletions in (False, True):
        begin = 0
        for number in [*sorted(known), NEVER_GIVEN + 1]:
            if number > begin and _has_records(reader, begin, number - 1, deletions):
                raise CorruptionError(
                    f"{rows} has rows of a table of a number from {begin} to {number - 1}, which {MANIFEST_FILE} does "
                    "not know: it is damaged, or of other rows"
                )
            begin = number + 1
    for number, (name, count) in known.items() if journal else ():
        there = _has_records(reader, number, number, deletions=False)
        may_be_dead = manifest.tables[name].life is not None
        if there != (count > 0) and not (there and may_be_dead):
            raise CorruptionError(
                f"{MANIFEST_FILE} says that table {shown(name)} has {count} rows, but {rows} says other"
            )


def _has_records(reader: _core.RecordReader, first: int, last: int, deletions: bool) -> bool:
    """Whether there is a record of a table of these numbers, well-formed or not: also before all, and behind all."""
    if not reader.seek(_core.first_key(first, deletions)):
        raise CorruptionError(f"{reader.path} cannot be read: {reader.error}")
    if reader.read(1, None) == 0 or reader.last_key is None:
        return False
    return (deletions and last == NEVER_GIVEN) or reader.last_key <= _core.last_key(last, deletions)


def count_rows(rows: Path, manifest: Manifest, lives: Mapping[str, bytes]) -> dict[str, int]:
    """Rows that live, by table, read from end to end. Raises CorruptionError if that cannot be done."""
    reader = _core.RecordReader(str(rows), _payload_sizes(manifest), recounts_of(manifest, lives))
    reader.seek(bytes(_core.KEY_BYTES))
    while not reader.error and reader.read(_RECORDS_AT_A_TIME, None) > 0:
        pass
    if reader.error or reader.malformed:
        reason = reader.error or reader.malformed[0].reason
        raise CorruptionError(f"the rows in {rows} cannot be counted: {reason}")
    tallies = reader.tallies
    return {
        name: tallies[table.number].records if table.number in tallies else 0 for name, table in manifest.tables.items()
    }


def recounts_of(manifest: Manifest, lives: Mapping[str, bytes]) -> dict[int, _core.LifeRecount]:
    """What tells rows that live from those that do not, and counts them, by table number.

    Raises:
        CorruptionError: one of `lives` is none.
    """
    tables = {name: manifest.tables[name] for name in lives}
    return {table.number: _core.LifeRecount(lives[name], table.iter) for name, table in tables.items()}


def _payload_sizes(manifest: Manifest) -> dict[int, int]:
    return {table.number: _core.payload_size(table.to_core(name)) for name, table in manifest.tables.items()}
