"""What `EmbeddingStore.stats` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from damo_torchrec.html_table import html_table
from damo_torchrec.life import Idle


@dataclass(frozen=True)
class LookupStats:
    """Ids that were looked up, with their repetitions, since the store was opened or `EmbeddingStore.reset_stats`.

    Args:
        hits: whose row was in memory by itself, without waiting.
        prefetched: whose row a prefetch had brought, or was about to: each at its first use, which without it would be
            a miss, and as long as it is on its way. Later uses are hits.
        misses: whose row had to be read.
        late: of `prefetched`, those whose row was still on its way, and was waited for.
    """

    hits: int = 0
    prefetched: int = 0
    misses: int = 0
    late: int = 0

    @property
    def ids(self) -> int:
        """All of them."""
        return self.hits + self.prefetched + self.misses

    @property
    def hit_rate(self) -> float:
        """Hits among all ids; 0 before the first."""
        return self.hits / self.ids if self.ids else 0.0

    @property
    def ready_rate(self) -> float:
        """Ids whose row was there without waiting, by itself or by a prefetch, among all ids; 0 before the first."""
        return (self.hits + self.prefetched - self.late) / self.ids if self.ids else 0.0

    def figures(self) -> Iterator[tuple[str, float]]:
        """All of it as numbers, with their names."""
        for name in ("hits", "prefetched", "late", "misses", "hit_rate", "ready_rate"):
            yield name, float(getattr(self, name))


@dataclass(frozen=True)
class LifeStats:
    """What came and went in a table whose rows have a life, since that began; checkpoints keep it.

    Args:
        rows: that live.
        sighted: ids that were seen and have no row yet; None of them are among `rows`.
        created: rows that updates and `Table.set` have made.
        expired: rows that went by each rule of `TableOptions.expire` as these are now. A rule that is given up takes
            its number with it.
        cut: rows that went as there were more than `max_rows`.
        forgotten_sightings: ids that were seen and had no row yet, and were not seen again in time.
        ladder: a row is dead if it stands before the position that this has for its count: of counts 0, 1, 2 to 3, 4 to
            7 and so on; the last one is for sightings. A row stands at the step of its last update, times 256, and the
            first byte of a hash of its id, so that of many rows of one step some can go.
        memory_bytes: what the engine keeps for it.
    """

    rows: int
    sighted: int
    created: int
    expired: Mapping[Idle, int]
    cut: int
    forgotten_sightings: int
    ladder: tuple[int, ...]
    memory_bytes: int


@dataclass(frozen=True)
class TableStats:
    """Figures of a table.

    Args:
        rows: rows that exist.
        cached_rows: rows in memory, counting ids that were read and have no row, and rows that expired or were cut and
            have not made place for others yet; it may be more than `rows`.
        training: what forwards in train mode looked up.
        evaluation: what forwards in eval mode, of frozen tables, and of predictors did.
        by_id: what `Table.get` did.
        life: what came and went; None if nothing has ever been said of how long rows live.
    """

    rows: int
    cached_rows: int
    training: LookupStats = LookupStats()
    evaluation: LookupStats = LookupStats()
    by_id: LookupStats = LookupStats()
    life: LifeStats | None = None

    @property
    def hits(self) -> int:
        """Those of training."""
        return self.training.hits

    @property
    def prefetched(self) -> int:
        """Those of training."""
        return self.training.prefetched

    @property
    def misses(self) -> int:
        """Those of training."""
        return self.training.misses

    @property
    def hit_rate(self) -> float:
        """That of training."""
        return self.training.hit_rate

    def figures(self) -> Iterator[tuple[str, float]]:
        """All of it as numbers, with their names; rules of expiry summed up."""
        yield "rows", float(self.rows)
        yield "cached_rows", float(self.cached_rows)
        for use in ("training", "evaluation", "by_id"):
            for name, value in getattr(self, use).figures():
                yield f"{use}/{name}", value
        if self.life is not None:
            yield "life/sighted", float(self.life.sighted)
            yield "life/created", float(self.life.created)
            yield "life/expired", float(sum(self.life.expired.values()))
            yield "life/cut", float(self.life.cut)

    def _repr_html_(self) -> str:
        return html_table(self.figures())


@dataclass(frozen=True)
class StoreStats:
    """Figures of a store since it was opened.

    Args:
        memory_bytes: memory that the cache, its index and RocksDB use now, and what forwards keep for their backwards.
        memory_budget: what they may use.
        disk_bytes: bytes of the live rows' files; checkpoints share them.
        disk_used: bytes of all files in the store's directory, hard links once, when they were last looked at, which is
            the more often the nearer they come to `StoreOptions.disk_budget`; 0 without one.
        disk_budget: what they may take; None for no limit.
        dead_bytes: about how many of `disk_bytes` are of rows that have expired and records of deletions that no delta
            needs, when that was last looked at. Files of which a third is dead are compacted in the background.
        reclaimed_records: rows, sightings of ids and records of deletions that have gone from the disk in this way.
        reclaimed_bytes: theirs.
        reclaim_lacks_space: whether the disk was too full the last time that some could have gone.
        bytes_written: bytes that RocksDB wrote, by flushes and compactions.
        rows_read: rows that RocksDB was asked for, whether it had them or not; each once in a batch.
        rows_written: changed rows that went to RocksDB.
        skipped_backwards: updates skipped because of a gradient that was not finite.
        tables: by name.
    """

    memory_bytes: int
    memory_budget: int
    disk_bytes: int
    disk_used: int
    disk_budget: int | None
    dead_bytes: int
    reclaimed_records: int
    reclaimed_bytes: int
    reclaim_lacks_space: bool
    bytes_written: int
    rows_read: int
    rows_written: int
    skipped_backwards: int
    tables: dict[str, TableStats]

    def figures(self) -> Iterator[tuple[str, str | None, float]]:
        """All of it as numbers: their names, the table that each is of, or None, and the number."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "tables" and value is not None:
                yield field.name, None, float(value)
        for table, stats in self.tables.items():
            for name, number in stats.figures():
                yield name, table, number

    def flat(self) -> dict[str, float]:
        """All of it by name, as loggers of metrics take it: ``memory_bytes``, ``tables/NAME/training/hit_rate``, ...

        What has no limit has no figure.
        """
        return {name if table is None else f"tables/{table}/{name}": value for name, table, value in self.figures()}

    def _repr_html_(self) -> str:
        whole = html_table((name, value) for name, table, value in self.figures() if table is None)
        rows = [
            (name, table.rows, table.cached_rows, table.training.hit_rate, table.training.ready_rate)
            for name, table in self.tables.items()
        ]
        return whole + html_table(rows, ("table", "rows", "in memory", "hit rate", "with prefetches"))
