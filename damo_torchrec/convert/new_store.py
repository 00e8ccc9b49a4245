"""`make_store`: a new store of tables that are read elsewhere, such as state dicts and dynamicemb's files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.atomic_directory import build_directory
from damo_torchrec.options import StoreOptions
from damo_torchrec.progress import Progress, counting, reporting
from damo_torchrec.store.conversion import Wanted, new_schema
from damo_torchrec.store.embedding_store import EmbeddingStore
from damo_torchrec.store.importing import GivenRows, import_table

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTable:
    """A table that is to be read.

    Args:
        name: that it gets.
        dim: weights in a row.
        rows: how many.
        row_dtype: what weights are stored as there: "float32", "float16" or "bfloat16".
        read: begins to read them, some at a time.
    """

    name: str
    dim: int
    rows: int
    row_dtype: str
    read: Callable[[], Iterator[GivenRows]]


def make_store(
    store: str | os.PathLike[str],
    tables: Sequence[SourceTable],
    *,
    optimizer: str,
    row_dtype: str | None = None,
    num_embeddings: int | None = None,
    memory_budget: int | str = "1GiB",
    seed: int | None = None,
    progress: Progress | bool = True,
) -> dict[str, int]:
    """Makes a store of tables, whole or not at all. Returns how many rows each has.

    Args:
        store: a new directory.
        tables: of different names.
        optimizer: an update rule's name, as "ADAM", whose state rows begin with.
        row_dtype: what weights are stored as; None for what they are.
        num_embeddings: how many ids are expected: new rows are drawn from ±1/√num_embeddings; None for the rows that
            a table has.
        memory_budget: as of `EmbeddingStore`.
        seed: likewise.
        progress: as of `StoreOptions`.

    Raises:
        ValueError: `store` exists; there is no such optimizer; two tables have one name; a weight is not finite, or an
            id comes twice.
        CorruptionError: what is read is damaged.
        OutOfSpaceError, DamoError, OSError: the disk is full or refuses. As after any error, there is no `store`.
    """
    names = [table.name for table in tables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tables need different names, but {twice[0]!r} comes more than once")
    schemas = {
        table.name: Wanted(optimizer, None, row_dtype or table.row_dtype).schema(
            new_schema(table.name, table.dim, num_embeddings or max(table.rows, 1))
        )
        for table in tables
    }
    rows: dict[str, int] = {}

    def fill(staged: Path) -> None:
        options = StoreOptions(progress=progress)
        with (
            EmbeddingStore(staged, memory_budget=memory_budget, seed=seed, options=options) as opened,
            reporting(progress) as tell,
        ):
            for table in tables:
                advance = counting(tell, f"rows of table {table.name!r}", table.rows)
                given = _counted(table.read(), advance)
                rows[table.name] = import_table(opened.session, table.name, schemas[table.name], 0, given)

    target = build_directory(Path(store).absolute(), "store", fill)
    _log.info("made the store %s, of %d tables with %d rows", target, len(rows), sum(rows.values()))
    return rows


def _counted(rows: Iterator[GivenRows], advance: Callable[[int], None]) -> Iterator[GivenRows]:
    for some in rows:
        yield some
        advance(len(some.ids))
