"""What a reader of rows that are not in memory took, and what the readers are called."""

from dataclasses import dataclass

RAW, DISK = "RocksDB MultiGet", "the disk's random reads"


@dataclass(frozen=True)
class Reading:
    """A reader's turn.

    Args:
        seconds: of each batch, or of an average one.
        blocks_per_row: 4 KiB blocks that came from the disk, not from the page cache, for each row.
    """

    seconds: list[float]
    blocks_per_row: float
