"""What a report tells of a store, as of a checkpoint."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from damo_torchrec.advice import Advice
from damo_torchrec.checkpoints.layout import MANIFEST_FILE, MODEL_FILE
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError
from damo_torchrec.inspection.summary import TableSummary, summarize
from damo_torchrec.progress import Progress
from damo_torchrec.stats import LifeStats
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableFacts:
    """A table: its schema, its rows, and what came and went."""

    dim: int
    row_dtype: str
    optimizer: str
    updates: int
    bytes_of_rows: int
    summary: TableSummary
    rule: str | None
    life: LifeStats | None


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint, by its manifest."""

    name: str
    made: str
    step: int
    rows: int
    bytes_of_rows: int
    dense_part: bool

    @staticmethod
    def of(path: Path) -> CheckpointFacts:
        """That of a checkpoint. Raises CorruptionError if it is damaged."""
        manifest = Manifest.read(path)
        made = datetime.fromtimestamp((path / MANIFEST_FILE).stat().st_mtime, timezone.utc)
        return CheckpointFacts(
            path.name,
            made.strftime("%Y-%m-%d %H:%M UTC"),
            manifest.step,
            sum(table.rows for table in manifest.tables.values()),
            sum(table.bytes_of_rows(name) for name, table in manifest.tables.items()),
            MODEL_FILE in manifest.files,
        )


@dataclass(frozen=True)
class Facts:
    """All that a report tells.

    Args:
        path: the store's, or the checkpoint's.
        step: of the rows.
        ahead: why the store may be ahead of that, or None.
        tables: by name.
        checkpoints: oldest first.
        advice: by the profile of the cache; None if there is none, or nothing in it.
        no_profile: why it cannot be read, or None.
    """

    path: Path
    step: int
    ahead: str | None
    tables: Mapping[str, TableFacts]
    checkpoints: Sequence[CheckpointFacts]
    advice: Advice | None
    no_profile: str | None = None


def facts_of(store: EmbeddingStore, progress: Progress, ahead: str | None = None) -> Facts:
    """Reads all rows of a store that is open to read."""
    tables = {}
    for name in store.session.catalog.names():
        entry = store.session.catalog.entry(name, store.session.engine)
        table = store.table(name)
        tables[name] = TableFacts(
            entry.schema.dim,
            entry.schema.row_dtype,
            str(entry.schema.optimizer["name"]),
            entry.iter,
            entry.bytes_of_rows(name),
            summarize(store.session, table.opened, progress),
            None if entry.life is None else str(entry.life),
            table.stats().life,
        )
    advice, no_profile = None, None
    try:
        profile = store.cache_profile()
        if profile is not None:
            with contextlib.suppress(ValueError):  # before training has looked anything up
                advice = profile.advise()
    except CorruptionError as error:
        _log.warning("the report tells nothing of memory budgets: %s", error)
        no_profile = f"{error}."
    paths = store.checkpoints()
    checkpoints = [CheckpointFacts.of(path) for path in paths]
    return Facts(store.path, store.step, ahead, tables, checkpoints, advice, no_profile)
