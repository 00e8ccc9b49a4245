"""A checkpoint's rows with its journal replayed into table files, for reading.

RocksDB would hold a journal in memory that it may not write.
"""

import shutil
import tempfile
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.checkpoints.layout import ROWS, holds_rows, logs, next_log
from damo_torchrec.errors import OutOfSpaceError
from damo_torchrec.files import on_tmpfs

# RocksDB has room for it within the least memory budget.
_SMALL_JOURNAL = 8 << 20


def has_large_journal(checkpoint: Path) -> bool:
    """Whether the checkpoint's journal takes more memory than RocksDB has within the budget."""
    return sum(log.stat().st_size for log in logs(checkpoint / ROWS)) > _SMALL_JOURNAL


class ReplayedJournal:
    """A database of a checkpoint's table files, by symbolic links, and of its journal, which is written to new ones.

    It is among temporary files. RocksDB changes no table file: the checkpoint stays as it is.

    Args:
        checkpoint: whose files have to stay in their place.
        options: of the engine that writes the journal's rows, within its memory budget.

    Raises:
        CorruptionError: the checkpoint is damaged.
        OutOfSpaceError, DamoError, OSError: there is no place for it on a disk.
    """

    def __init__(self, checkpoint: Path, options: _core.StoreOptions) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="damo_torchrec-reading-"))
        try:
            if on_tmpfs(str(self.path)):
                raise OutOfSpaceError(f"{self.path} is on tmpfs, that is, in memory: set TMPDIR to a disk")
            files = list((checkpoint / ROWS).iterdir())
            for file in files:
                if holds_rows(file):
                    (self.path / file.name).symlink_to(file.absolute())
                else:
                    shutil.copyfile(file, self.path / file.name)
            # RocksDB cuts the last log to its size when it opens the database, which would touch the checkpoint's.
            (self.path / next_log(file.name for file in files)).touch()
            _core.Store(str(self.path), False, False, options).close()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
