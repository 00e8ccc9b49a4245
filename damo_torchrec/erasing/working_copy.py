"""Working copies of servers: rows of a checkpoint, which share its files and outlive it there."""

import logging
import shutil
from pathlib import Path

from damo_torchrec.checkpoints.layout import CHECKPOINTS, LIVE, ROWS
from damo_torchrec.checkpoints.listing import read_directory
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.checkpoints.temporary_directory import is_temporary
from damo_torchrec.erasing.checkpoint import find_rows
from damo_torchrec.erasing.report import Erased, ForgetReport
from damo_torchrec.erasing.wanted import Wanted
from damo_torchrec.errors import DamoError, StoreLockedError

_log = logging.getLogger(__name__)
_WHAT = "working copy"


def is_working_copy(path: Path) -> bool:
    """Whether it is a server's working copy, by the marker within it."""
    return is_directory(path) and is_temporary(path / CHECKPOINTS)


def remove_working_copy(path: Path, wanted: Wanted, report: ForgetReport) -> None:
    """Removes a working copy that no server uses any more; else says in the report if it has wanted rows, or may."""
    try:
        held = StoreDirectory(path)
    except StoreLockedError as error:
        if _may_hold(path, wanted):
            report.leave(
                path,
                _WHAT,
                f"a server is at work on it ({error}). It deletes the rows with the next delta, but its files hold "
                "them until it is closed: start it anew, from what has been rewritten",
            )
        return
    except (DamoError, ValueError, OSError) as error:
        report.leave(path, _WHAT, f"it may hold them: {error}")
        return
    try:
        if not report.dry_run:
            shutil.rmtree(path)
            _log.info("removed the working copy %s, which no server uses", path)
    except OSError as error:
        report.leave(path, _WHAT, f"it may hold them: {error}")
        return
    finally:
        held.release()
    report.erased.append(Erased(path, _WHAT, "removed"))


def _may_hold(path: Path, wanted: Wanted) -> bool:
    """Whether a working copy in use has any of the rows, or cannot be looked at."""
    listed, _ = read_directory(path / CHECKPOINTS)
    if not listed:
        return True
    places = [path / LIVE, *(checkpoint.path / ROWS for checkpoint in listed)]
    try:
        return any(find_rows(rows, listed[-1].manifest, wanted).held for rows in places)
    except (DamoError, OSError):
        return True
