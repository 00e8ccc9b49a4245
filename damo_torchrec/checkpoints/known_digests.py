"""SHA-256 of files of rows that is known already: they never change once written, and checkpoints share them."""

import os
from collections.abc import Mapping
from pathlib import Path

from damo_torchrec.checkpoints.file_entry import FileEntry
from damo_torchrec.checkpoints.layout import holds_rows

# What tells a file from every other: its name, device, inode, size, and when it was written.
_Identity = tuple[str, int, int, int, int]


class KnownDigests:
    """Entries of files of rows, by what tells a file from every other. Hard links of one are one.

    A file that is damaged later keeps the entry of what was written, so that the damage is found.
    """

    def __init__(self) -> None:
        self._digests: dict[_Identity, str] = {}

    def note(self, directory: Path, entries: Mapping[str, FileEntry]) -> None:
        """Takes over those that a manifest has of the checkpoint `directory`; forgets files that it does not name."""
        known = {}
        names = set()
        for name, entry in entries.items():
            if holds_rows(name) and type(entry) is FileEntry and entry.sha256 is not None:
                names.add(os.path.basename(name))
                try:
                    status = os.lstat(directory / name)
                except OSError:
                    continue
                if status.st_size == entry.size:
                    known[_identity(name, status)] = entry.sha256
        kept = {identity: digest for identity, digest in self._digests.items() if identity[0] in names}
        self._digests = {**kept, **known}

    def entry_of(self, file: Path) -> FileEntry:
        """`FileEntry.of` of a file, which is read only if it is not known."""
        if holds_rows(file):
            status = os.lstat(file)
            if (digest := self._digests.get(_identity(file.name, status))) is not None:
                return FileEntry(status.st_size, digest)
        return FileEntry.of(file)


def _identity(name: str, status: os.stat_result) -> _Identity:
    return os.path.basename(name), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
