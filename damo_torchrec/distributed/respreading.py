"""Rows of a checkpoint of several ranks for another number of ranks, or for one process: streamed, to the bit.

A record of a row, or of the sightings of an id without one, goes to `rank_of(id)` as it is. Records of deletions do
not, as no delta goes on across this; and rows that are dead where they are come to life nowhere.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.checkpoints.layout import LINEAGE_FILE, ORIGIN_FILE, ROWS, journal_bytes, life_file
from damo_torchrec.checkpoints.lineage import Lineage, StoreState
from damo_torchrec.checkpoints.manifest import Manifest, new_id
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.row_counts import recounts_of
from damo_torchrec.checkpoints.table_entry import TableEntry
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint
from damo_torchrec.errors import CorruptionError, SchemaMismatchError
from damo_torchrec.files import sync_directory, write_file
from damo_torchrec.progress import Progress, counting
from damo_torchrec.rescue.records import payload_sizes
from damo_torchrec.store.embedding_store import EmbeddingStore

_RECORDS_AT_A_TIME = 65536

# RocksDB holds so much of a journal in memory, beside what it does otherwise.
_SMALL_JOURNAL = 8 << 20


@dataclass(frozen=True)
class Share:
    """What one rank of several gets.

    Args:
        rank: which.
        world_size: of how many.
        memory_budget: bytes that it takes at most, about.
        line: of states, that its rows are of from here on.
        progress: told how far it is.
    """

    rank: int
    world_size: int
    memory_budget: int | str
    line: str
    progress: Progress


def common_manifest(source: RanksCheckpoint) -> Manifest:
    """A manifest with the tables that all parts have, and the rows of all of them.

    Raises:
        SchemaMismatchError: they differ in their seed, or in what a table is.
    """
    first = source.parts[0]
    for rank, part in enumerate(source.parts):
        if part.seed != first.seed:
            raise SchemaMismatchError(f"{source.path}: rank 0 has the seed {first.seed}, rank {rank} {part.seed}")
        for name, table in part.tables.items():
            if replace(table, rows=0) != replace(first.tables[name], rows=0):
                raise SchemaMismatchError(
                    f"{source.path}: table {name!r} is another on rank {rank} than on rank 0: "
                    f"{replace(table, rows=0)}, expected {replace(first.tables[name], rows=0)}"
                )
    tables = {
        name: replace(table, rows=sum(part.tables[name].rows for part in source.parts))
        for name, table in first.tables.items()
    }
    return replace(
        first,
        id=new_id(),
        tables=tables,
        files={},
        sequence=max(part.sequence for part in source.parts),
        next_table_number=max(part.next_table_number for part in source.parts),
    )


def spread(source: RanksCheckpoint, share: Share, target: Path) -> Path:
    """Makes the new directory `target` a checkpoint of a store, with a rank's share of the rows of all parts.

    Raises:
        CorruptionError: a part is damaged.
        SchemaMismatchError: the parts are not of one model.
        OutOfSpaceError, DamoError: the disk is full or refuses; nothing is left behind.
    """
    return build_directory(target, "checkpoint", lambda staged: _fill(source, share, staged))


def _fill(source: RanksCheckpoint, share: Share, staged: Path) -> None:
    manifest = common_manifest(source)
    state = StoreState.of(replace(manifest, id=source.manifest.id))
    if share.world_size == 1:  # all rows of that state
        manifest = replace(manifest, id=state.id)
    scratch = staged / "scratch"
    scratch.mkdir()
    lives = [part.read_lives(source.part(rank)) for rank, part in enumerate(source.parts)]
    combined = {
        name: _core.LifeRecount(
            _core.combine_lives([of_part[name] for of_part in lives], share.rank == 0), manifest.tables[name].iter
        )
        for name in lives[0]
    }
    counts = {manifest.tables[name].number: life for name, life in combined.items()}
    rows = dict.fromkeys(manifest.tables, 0)
    writer = _core.RecordWriter(str(scratch / "new"))
    advance = counting(share.progress, f"rows of {source.path}", sum(table.rows for table in manifest.tables.values()))
    for rank, part in enumerate(source.parts):
        where = _without_journal(source.part(rank), share, scratch)
        read = recounts_of(part, lives[rank])
        reader = _core.RecordReader(str(where / ROWS), payload_sizes(part.tables), read, counts)
        reader.seek(bytes(_core.KEY_BYTES))
        while not reader.error and (n := reader.read_share(_RECORDS_AT_A_TIME, writer, share.rank, share.world_size)):
            advance(n)
        if reader.error or reader.malformed:
            reason = reader.error or reader.malformed[0].reason
            raise CorruptionError(f"{source.part(rank) / ROWS} is damaged: {reason}")
        tallies = reader.tallies
        for name, table in part.tables.items():
            rows[name] += tallies[table.number].records if table.number in tallies else 0
    writer.finish(str(staged / ROWS))
    shutil.rmtree(scratch)
    for name, life in combined.items():
        write_file(staged / life_file(manifest.tables[name].number), life.bytes)
    write_file(staged / LINEAGE_FILE, Lineage([replace(state, landmark=True)]).dump(manifest.id))
    write_file(staged / ORIGIN_FILE, Origin(share.line).dump())
    sync_directory(staged / ROWS)
    replace(manifest, tables=_with_rows(manifest.tables, rows)).with_files(staged).write(staged)


def _with_rows(tables: dict[str, TableEntry], rows: dict[str, int]) -> dict[str, TableEntry]:
    return {name: replace(table, rows=rows[name]) for name, table in tables.items()}


def _without_journal(part: Path, share: Share, scratch: Path) -> Path:
    """A checkpoint with the rows of a part, all of them in table files: a journal may be larger than memory."""
    manifest = Manifest.read(part)
    manifest.check_files(part, tables=False)
    if journal_bytes(part / ROWS) <= _SMALL_JOURNAL:
        return part
    path = scratch / part.name
    with EmbeddingStore(path, memory_budget=share.memory_budget, restore=part) as store:
        store.flush()
        return store.session.checkpoint()
