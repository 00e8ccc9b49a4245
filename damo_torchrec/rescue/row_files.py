"""What is wrong with a file of rows, by itself: read from end to end, as no opening of a database does."""

from pathlib import Path

from damo_torchrec.checkpoints.file_entry import Finding, log_finding, table_file_finding
from damo_torchrec.checkpoints.layout import is_log, is_table_file
from damo_torchrec.checkpoints.regular_file import check_regular


def row_file_finding(file: Path) -> Finding | None:
    """What is wrong with a table file or a log; of any other file, only whether it is a regular one."""
    try:
        check_regular(file)
    except OSError as error:
        return Finding(file, "a regular file", str(error))
    if is_log(file):
        return log_finding(file)
    return table_file_finding(file) if is_table_file(file) else None
