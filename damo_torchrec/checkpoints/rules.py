"""What ids and names of files may be in the documents of checkpoints and deltas, whoever wrote them."""

import re
from collections.abc import Mapping
from typing import Any

from damo_torchrec.checkpoints.document import shown

_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# What the usual file systems have.
_LONGEST_NAME = 255  # bytes
_LONGEST_PATH = 1024  # bytes


def check_id(what: str, text: str) -> None:
    """Raises ValueError unless it is an id: 32 hexadecimal digits."""
    if not _ID.fullmatch(text):
        raise ValueError(f"{what} is {shown(text)}, expected 32 hexadecimal digits")


def check_digest(what: str, text: str) -> None:
    """Raises ValueError unless it is a SHA-256 in hexadecimal digits."""
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{what} is {shown(text)}, expected 64 hexadecimal digits")


def check_file_name(name: str) -> None:
    """Raises ValueError unless it names a file inside the directory: relative, and one way to write it alone."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{shown(name)} in files is no path of a file inside the directory")
    if not name.isprintable() or "\\" in name:
        raise ValueError(f"{shown(name)} in files has characters that no file of ours has in its name")
    if len(name.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in parts):
        raise ValueError(f"{shown(name)} in files is longer than names of files are")


def check_files(files: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are entries of files inside the directory, each by one name."""
    for name, entry in files.items():
        check_file_name(name)
        if entry.sha256 is not None:
            check_digest(f"the SHA-256 of {shown(name)}", entry.sha256)
