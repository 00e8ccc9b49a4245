"""Finding damage of deltas: of one, or of a directory that a publisher writes."""

from collections.abc import Iterator
from pathlib import Path

from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.layout import DELTA_FILE
from damo_torchrec.errors import CorruptionError


def deltas_in(path: Path) -> list[Path]:
    """`path` itself if it is a delta, or those right below it, by name; links are passed over."""
    if (path / DELTA_FILE).exists():
        return [path]
    if not path.is_dir():
        return []
    return sorted(entry for entry in path.iterdir() if not entry.is_symlink() and (entry / DELTA_FILE).exists())


def delta_findings(path: Path) -> Iterator[Finding]:
    """Yields the first damage of a delta, all of which is read, if there is any. Raises DamoError if it cannot be."""
    try:
        Delta.read(path)
    except CorruptionError as error:
        yield Finding(path, "a delta as it was written", str(error))
