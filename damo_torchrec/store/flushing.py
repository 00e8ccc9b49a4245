"""Handing changed rows to RocksDB, and telling how far that is."""

from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.progress import Progress


def flush(engine: _core.Store, path: Path, progress: Progress) -> None:
    """Writes all changed rows of the store `path`. REQUIRES: the session's mutex."""
    done, total = 0, 1
    while done < total:
        done, total = engine.flush_part(done)
        progress(f"changed rows of {path}", done, total)
    engine.flush()
