"""A checkpoint of all ranks: what it consists of, and which a directory holds."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document, shown
from damo_torchrec.checkpoints.file_entry import FileEntry, Finding
from damo_torchrec.checkpoints.layout import (
    RANKS_FILE,
    checkpoint_name,
    complete_entries,
    is_checkpoint_name,
    rank_name,
)
from damo_torchrec.checkpoints.manifest import LAST_SEQUENCE, Manifest
from damo_torchrec.checkpoints.rank_identity import MOST_RANKS
from damo_torchrec.checkpoints.regular_file import is_directory
from damo_torchrec.checkpoints.rules import check_files, check_id
from damo_torchrec.errors import CorruptionError, DamoError

_VERSION = 1

# Who removes a checkpoint once it is outdated: what made it without being told a name.
OPENING = "open_store"
SAVING = "save_model"
MANAGER = "CheckpointManager"
NOBODY = ""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RanksManifest:
    """What ``ranks.json`` says, in a checkpoint of all ranks.

    Args:
        id: of the checkpoint.
        group: the id of the stores that belong together.
        run: of the opening of all of them whose rows these are.
        sequence: rises from checkpoint to checkpoint: the highest is the newest.
        step: the largest number of updates that any table has had.
        keeper: who may remove it.
        parts: the ids of the checkpoints of the ranks' stores, by rank.
        dense_ranks: of how many ranks there is a dense part; 0 if there is none.
        files: those beside the parts, by relative path.
    """

    id: str
    group: str
    run: str
    sequence: Annotated[int, range(LAST_SEQUENCE)]
    step: Annotated[int, range(2**32)]
    keeper: str
    parts: list[str]
    dense_ranks: Annotated[int, range(MOST_RANKS + 1)] = 0
    files: dict[str, FileEntry] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        """How many ranks there were."""
        return len(self.parts)

    def check(self) -> None:
        """Raises ValueError if its parts contradict each other."""
        for what in ("id", "group", "run"):
            check_id(what, getattr(self, what))
        if not 1 <= len(self.parts) <= MOST_RANKS:
            raise ValueError(f"it has {len(self.parts)} parts")
        for part in self.parts:
            check_id("a part's id", part)
        if self.keeper not in (OPENING, SAVING, MANAGER, NOBODY):
            raise ValueError(f"keeper is {shown(self.keeper)}")
        check_files(self.files)
        if missing := [name for name, entry in self.files.items() if entry.sha256 is None]:
            raise ValueError(f"there is no SHA-256 of {shown(missing[0])}")

    def write(self, directory: Path) -> None:
        """Writes it into a checkpoint's directory. Raises DamoError if it could not be read again."""
        document = dump_document("ranks", _VERSION, asdict(self), RanksManifest, RanksManifest.check)
        (directory / RANKS_FILE).write_text(document)

    @staticmethod
    def read(directory: Path) -> RanksManifest:
        """That of a checkpoint. Raises CorruptionError if it has none, or it is damaged."""
        path = directory / RANKS_FILE
        try:
            content = read_document(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CorruptionError(f"{directory} is no checkpoint of several ranks: it has no {RANKS_FILE}") from error
        return parse_document(content, path, "ranks", range(_VERSION, _VERSION + 1), RanksManifest, RanksManifest.check)


@dataclass(frozen=True)
class RanksCheckpoint:
    """A checkpoint of all ranks in its directory, whose parts are there and belong together.

    Args:
        path: its directory.
        manifest: what it consists of.
        parts: the manifests of its parts, by rank.
    """

    path: Path
    manifest: RanksManifest
    parts: list[Manifest]

    @property
    def world_size(self) -> int:
        """How many ranks there were."""
        return self.manifest.world_size

    @property
    def has_dense_part(self) -> bool:
        """Whether `save_model` made it."""
        return self.manifest.dense_ranks > 0

    def part(self, rank: int) -> Path:
        """The checkpoint of a rank's store in it."""
        return self.path / rank_name(rank, self.world_size)

    def check_dense_files(self) -> None:
        """Raises CorruptionError if a file of the dense part is missing, or not as it was written."""
        for name, entry in self.manifest.files.items():
            finding: Finding | None = entry.finding(self.path / name)
            if finding is not None:
                raise CorruptionError(f"{self.path} is damaged: {finding}")

    @staticmethod
    def read(path: Path) -> RanksCheckpoint:
        """The checkpoint in a directory.

        Raises:
            CorruptionError: it has none; a part is missing, damaged, or of another checkpoint than the others.
        """
        manifest = RanksManifest.read(path)
        parts = []
        for rank, expected in enumerate(manifest.parts):
            part = path / rank_name(rank, manifest.world_size)
            if not is_directory(part):
                raise CorruptionError(f"{path} lacks the part of rank {rank} of {manifest.world_size}, {part.name}")
            found = Manifest.read(part)
            if found.id != expected:
                raise CorruptionError(
                    f"{part} is of another checkpoint than {path}: its id is {found.id}, expected {expected}"
                )
            parts.append(found)
        check_parts([{name: table.iter for name, table in part.tables.items()} for part in parts], str(path))
        return RanksCheckpoint(path, manifest, parts)


def check_parts(iters: list[dict[str, int]], what: str) -> None:
    """Raises CorruptionError unless all ranks have the same tables, with the same number of updates.

    Args:
        iters: by rank: of each table, by name.
        what: whose they are, for messages.
    """
    for rank, own in enumerate(iters):
        if own.keys() != iters[0].keys():
            raise CorruptionError(
                f"{what}: rank 0 has the tables {sorted(iters[0])}, rank {rank} {sorted(own)}: each has to have all"
            )
        if own != iters[0]:
            odd = min(name for name in own if own[name] != iters[0][name])
            steps = ", ".join(str(rank_iters[odd]) for rank_iters in iters)
            raise CorruptionError(f"{what}: the ranks are at different steps: table {odd!r} has had {steps} updates")


def read_ranks_directory(where: Path) -> tuple[list[tuple[Path, RanksManifest]], dict[Path, CorruptionError]]:
    """The checkpoints of all ranks in the directory `where`, oldest first, and what is wrong with damaged ones."""
    listed: list[tuple[Path, RanksManifest]] = []
    damaged: dict[Path, CorruptionError] = {}
    for path in complete_entries(where):
        if not is_checkpoint_name(path.name) and not (path / RANKS_FILE).exists():
            continue  # of the user's
        try:
            if not is_directory(path):
                raise CorruptionError(f"{path} is no directory, as a checkpoint is")
            listed.append((path, RanksManifest.read(path)))
        except CorruptionError as error:
            if os.path.lexists(path):  # else it has been removed meanwhile
                damaged[path] = error
    return sorted(listed, key=lambda found: found[1].sequence), damaged


def oldest_first(where: Path, group: str | None) -> list[tuple[Path, RanksManifest]]:
    """The checkpoints of a group in a directory; of all where that is None, if they are of one.

    Raises:
        CorruptionError: one is damaged, which may have been the newest.
        DamoError: they are of several groups, and nothing tells which is meant.
    """
    listed, damaged = read_ranks_directory(where)
    for error in damaged.values():
        raise CorruptionError(f"{error}. It may be the newest checkpoint: name another one (restore=), or move it away")
    if group is None:
        if len({manifest.group for _, manifest in listed}) > 1:
            raise DamoError(f"{where} holds checkpoints of several groups of stores: name one, or move others away")
        return listed
    if others := [path.name for path, manifest in listed if manifest.group != group]:
        _log.warning(
            "%s holds checkpoints of another group of stores: %s. They are neither counted nor removed, and restored "
            "only by name",
            where,
            ", ".join(others),
        )
    return [(path, manifest) for path, manifest in listed if manifest.group == group]


def find(where: Path, which: str | int | os.PathLike[str]) -> Path:
    """A checkpoint of a step, the newest, or of a name in `where`, or a path. Raises ValueError if there is none."""
    if isinstance(which, int):
        name = checkpoint_name(str(which))
        named = [(one.sequence, path) for path, one in read_ranks_directory(where)[0] if path.stem == name]
        candidates = [path for _, path in sorted(named, reverse=True)]
    else:
        candidates = [Path(which), where / which]
    for candidate in candidates:
        if (candidate / RANKS_FILE).is_file():
            return candidate.absolute()
    names = ", ".join(path.name for path, _ in read_ranks_directory(where)[0]) or "none"
    raise ValueError(f"{where} has no checkpoint {which!r} of several ranks; it has {names}")


def next_sequence(where: Path) -> int:
    """When a new checkpoint in the directory `where` was made: the time, unless there are later ones."""
    last = max((manifest.sequence for _, manifest in read_ranks_directory(where)[0]), default=0)
    return max(time.time_ns() // 1000, last + 1)
