"""A checkpoint's table files as a database that may be written, for reading with a journal over it.

What of a journal does not fit into memory has to go somewhere, and the checkpoint stays as it is.
"""

import shutil
import tempfile
from pathlib import Path

from damo_torchrec.checkpoints.layout import ROWS, is_log, is_table_file, journal_bytes
from damo_torchrec.errors import OutOfSpaceError
from damo_torchrec.files import check_regular, on_tmpfs

# RocksDB has room for it within the least memory budget.
_SMALL_JOURNAL = 8 << 20


def has_large_journal(checkpoint: Path) -> bool:
    """Whether the checkpoint's journal takes more memory than RocksDB has within the budget."""
    return journal_bytes(checkpoint / ROWS) > _SMALL_JOURNAL


class ReadingCopy:
    """A database of a checkpoint's table files, by symbolic links, without its journal.

    It is among temporary files. RocksDB changes no table file: the checkpoint stays as it is.

    Args:
        checkpoint: whose files have to stay in their place.

    Raises:
        CorruptionError: one of its files is a link, or no regular file.
        OutOfSpaceError, OSError: there is no place for it on a disk.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="damo_torchrec-reading-"))
        try:
            if on_tmpfs(str(self.path)):
                raise OutOfSpaceError(f"{self.path} is on tmpfs, that is, in memory: set TMPDIR to a disk")
            for file in (checkpoint / ROWS).iterdir():
                check_regular(file)
                if is_table_file(file):
                    (self.path / file.name).symlink_to(file.absolute())
                elif not is_log(file):
                    shutil.copyfile(file, self.path / file.name)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
