"""What `EmbeddingStore.stats` returns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TableStats:
    """Figures of a table since the store was opened.

    Args:
        rows: rows that exist.
        cached_rows: rows in memory, counting unseen ids that were read.
        hits: ids, with repetitions, that a forward found in memory.
        misses: and that it did not.
    """

    rows: int
    cached_rows: int
    hits: int
    misses: int

    @property
    def hit_rate(self) -> float:
        """Hits among all ids; 0 before the first."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 0.0


@dataclass(frozen=True)
class StoreStats:
    """Figures of a store since it was opened.

    Args:
        memory_bytes: memory that the cache, its index and RocksDB use now, and what forwards keep for their backwards.
        memory_budget: what they may use.
        disk_bytes: bytes of the live rows' files; checkpoints share them.
        bytes_written: bytes that RocksDB wrote, by flushes and compactions.
        rows_read: rows that RocksDB was asked for, whether it had them or not; each once in a batch.
        rows_written: changed rows that went to RocksDB.
        skipped_backwards: updates skipped because of a gradient that was not finite.
        tables: by name.
    """

    memory_bytes: int
    memory_budget: int
    disk_bytes: int
    bytes_written: int
    rows_read: int
    rows_written: int
    skipped_backwards: int
    tables: dict[str, TableStats]
