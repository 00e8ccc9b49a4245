"""A checkpoint's table files as a database that may be written, for reading with a journal over it.

What of a journal does not fit into memory has to go somewhere, and the checkpoint stays as it is.
"""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from damo_torchrec.checkpoints.layout import ROWS, is_log, is_table_file, journal_bytes
from damo_torchrec.checkpoints.regular_file import check_regular
from damo_torchrec.checkpoints.rows_copy import copy_file, rows_files
from damo_torchrec.errors import OutOfSpaceError
from damo_torchrec.files import on_tmpfs

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
        names: of its files. Others that lie there are passed over.

    Raises:
        OSError: one of its files is no regular one, or there is no place for it on a disk.
    """

    def __init__(self, checkpoint: Path, names: Iterable[str]) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="damo_torchrec-reading-"))
        try:
            if on_tmpfs(str(self.path)):
                raise OutOfSpaceError(f"{self.path} is on tmpfs, that is, in memory: set TMPDIR to a disk")
            for name in rows_files(names):
                file = checkpoint / ROWS / name
                if is_table_file(file):
                    check_regular(file)
                    (self.path / name).symlink_to(file.absolute())
                elif not is_log(file):
                    copy_file(file, self.path / name)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Removes it."""
        shutil.rmtree(self.path, ignore_errors=True)
