"""Directories that this package makes for a while, and may remove once nobody uses them: a marker in each says so.

A name alone proves nothing: what lies beside a checkpoint may be anybody's.
"""

import os
import shutil
from pathlib import Path

from damo_torchrec.checkpoints.regular_file import is_directory, read_regular

MARKER = "DAMO_TORCHREC_TEMPORARY"
_TEXT = b"damo_torchrec made this directory for a while, and removes it once no process uses it.\n"


def mark_temporary(directory: Path) -> None:
    """Has a directory that was just made be one of these. Raises OSError, as where somebody has removed it."""
    with (directory / MARKER).open("xb") as file:
        file.write(_TEXT)


def is_temporary(directory: Path) -> bool:
    """Whether it is one of these, of this user: no link to a directory, with the marker, or the beginning of it."""
    try:
        return (
            is_directory(directory)
            and os.lstat(directory).st_uid == os.geteuid()
            and _TEXT.startswith(read_regular(directory / MARKER, len(_TEXT)))
        )
    except (OSError, ValueError):
        return False


def remove_temporary(directory: Path) -> None:
    """Removes one of these. Interrupted, it leaves a marked directory, or an empty one. Raises OSError."""
    with os.scandir(directory) as entries:
        contents = [entry for entry in entries if entry.name != MARKER]
    for entry in contents:
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    (directory / MARKER).unlink(missing_ok=True)
    directory.rmdir()
