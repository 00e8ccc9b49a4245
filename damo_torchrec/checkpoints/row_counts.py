"""How many rows the tables of a checkpoint have, counted: what a manifest of somebody else says may be wrong."""

import logging
from dataclasses import replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.layout import ROWS
from damo_torchrec.checkpoints.manifest import Manifest
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
    counts = count_rows(checkpoint / ROWS, manifest)
    tables = {name: replace(table, rows=counts[name]) for name, table in manifest.tables.items()}
    for name in wrong:
        _log.warning(
            "table %r would have %d rows, which cannot be: the manifest that the store began with was wrong. It has %d",
            name,
            manifest.tables[name].rows,
            counts[name],
        )
    return replace(manifest, tables=tables)


def count_rows(rows: Path, manifest: Manifest) -> dict[str, int]:
    """Rows by table, read from end to end. Raises CorruptionError if that cannot be done."""
    sizes = {table.number: _core.payload_size(table.to_core(name)) for name, table in manifest.tables.items()}
    reader = _core.RecordReader(str(rows), sizes)
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
