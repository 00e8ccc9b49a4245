"""`ForgetReport`: what had something of rows that were to be forgotten, and what has it still."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_Inode = tuple[int, int]  # device and number


@dataclass(frozen=True)
class Erased:
    """Something that held rows which were to be forgotten, and holds them no more; after a dry run, that would not.

    Args:
        path: of it.
        what: it is: ``"live rows"``, ``"checkpoint"``, ``"delta"``, ``"export"``, ``"working copy"``, ``"rows of a
            crash"``, ``"unfinished checkpoint"``.
        done: ``"rewritten"``, ``"removed"``.
        rows: how many of the rows it had, or of sightings of ids that had none; None where nobody looked, as it is of
            no use otherwise.
    """

    path: Path
    what: str
    done: str
    rows: int | None = None


@dataclass(frozen=True)
class Remaining:
    """Something that holds rows still which were to be forgotten, or may hold them.

    Args:
        path: of it.
        what: it is, as of `Erased`, or ``"file"``.
        reason: why, and what helps.
    """

    path: Path
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.path}: {self.reason}"


@dataclass
class ForgetReport:
    """What `EmbeddingStore.forget` found and did.

    Args:
        asked: how many ids were to be forgotten, by table.
        dry_run: whether nothing was changed.
        deleted: of these, how many had a row that training would have gone on with, by table; of a closed store not
            known.
        erased: what held something of them.
        remaining: what holds something of them still, or may, as far as this can be known.
    """

    asked: Mapping[str, int]
    dry_run: bool = False
    deleted: dict[str, int] = field(default_factory=dict)
    erased: list[Erased] = field(default_factory=list)
    remaining: list[Remaining] = field(default_factory=list)
    _links: dict[_Inode, tuple[Path, int]] = field(default_factory=dict, repr=False)

    @property
    def complete(self) -> bool:
        """Whether nothing is known that holds any of the rows still."""
        return not self.remaining

    def leave(self, path: Path, what: str, reason: object) -> None:
        """Notes that something holds rows still."""
        self.remaining.append(Remaining(path, what, str(reason)))

    def note_removed(self, files: Mapping[Path, os.stat_result]) -> None:
        """Notes that one name of each of these files, which had such rows, is gone: others may be anywhere.

        Args:
            files: what the system said of them before.
        """
        for file, status in files.items():
            self._links[status.st_dev, status.st_ino] = file, status.st_nlink - 1

    def note_other_names(self) -> None:
        """Has `remaining` name the files of which there are names elsewhere. REQUIRES: all else is done."""
        for file, others in self._links.values():
            if others > 0:
                self.leave(
                    file,
                    "file",
                    f"it is gone from here, but has {others} other names on its file system, by hard links: in "
                    "checkpoints elsewhere, a server's working copy, or a copy",
                )
        self._links.clear()

    def __str__(self) -> str:
        would = "would be " if self.dry_run else ""
        lines = []
        for name, asked in self.asked.items():
            had = f", of which {self.deleted[name]} had a row" if name in self.deleted else ""
            lines.append(f"table {name!r}: {asked} ids{had}")
        for one in self.erased:
            rows = "" if one.rows is None else f", had {one.rows} of the rows"
            lines.append(f"{one.what} {one.path}: {would}{one.done}{rows}")
        lines += [f"left: {one}" for one in self.remaining]
        return "\n".join(lines)
