"""The directory of a rank's store: whose it is, and what is in it before it is opened."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document
from damo_torchrec.checkpoints.layout import LIVE, LOCK_FILE, RANK_FILE, rank_name
from damo_torchrec.checkpoints.listing import has_checkpoints
from damo_torchrec.checkpoints.regular_file import open_or_make
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import CorruptionError, SchemaMismatchError
from damo_torchrec.files import os_errors, replace_file

_VERSION = 1
MOST_RANKS = 2**20


@dataclass(frozen=True)
class RankIdentity:
    """What ``rank.json`` says, in the directory of a rank's store.

    Args:
        group: the id of the stores that belong together: one of each rank.
        rank: whose it is.
        world_size: how many ranks there are.
        run: the id of the opening of all of them that was the last.
    """

    group: str
    rank: Annotated[int, range(MOST_RANKS)]
    world_size: Annotated[int, range(1, MOST_RANKS + 1)]
    run: str

    def check(self) -> None:
        """Raises ValueError if its parts contradict each other."""
        check_id("group", self.group)
        check_id("run", self.run)
        if self.rank >= self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}")

    def write(self, store: Path) -> None:
        """Makes it that of a store's directory, whole or not at all."""
        document = dump_document("rank", _VERSION, asdict(self), RankIdentity, RankIdentity.check)
        replace_file(store / RANK_FILE, document.encode())

    @staticmethod
    def read(store: Path) -> RankIdentity | None:
        """That of a store's directory; None if it has none. Raises CorruptionError if it is damaged."""
        path = store / RANK_FILE
        try:
            content = read_document(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return parse_document(content, path, "rank", range(_VERSION, _VERSION + 1), RankIdentity, RankIdentity.check)


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint inside a rank's store.

    Args:
        name: its directory's.
        id: of the state of the store.
        sequence: its manifest's.
        iters: of its tables, by name.
        rows: of all tables.
    """

    name: str
    id: str
    sequence: int
    iters: dict[str, int]
    rows: int


@dataclass(frozen=True)
class RankState:
    """A rank's store as it is before it is opened.

    Args:
        identity: whose it is; None if it is new.
        closed: whether whoever had it open closed it.
        checkpoints: inside it, oldest first.
    """

    identity: RankIdentity | None
    closed: bool
    checkpoints: list[LocalCheckpoint]

    @property
    def newest(self) -> LocalCheckpoint | None:
        """The newest of its checkpoints."""
        return self.checkpoints[-1] if self.checkpoints else None

    @staticmethod
    def read(root: Path, rank: int, world_size: int) -> RankState:
        """That of the store of a rank; nothing is changed.

        Raises:
            SchemaMismatchError: the directory is another rank's, or a store of one process.
            CorruptionError: what is in it is damaged.
        """
        path = root / rank_name(rank, world_size)
        identity = RankIdentity.read(path)
        if identity is None and has_checkpoints(path):
            raise SchemaMismatchError(
                f"{path} is the store of a single process, which no rank has made: it has no {RANK_FILE}"
            )
        if identity is not None and (identity.rank, identity.world_size) != (rank, world_size):
            raise SchemaMismatchError(
                f"{path} is the store of rank {identity.rank} of {identity.world_size}, by its {RANK_FILE}, "
                f"expected that of rank {rank} of {world_size}"
            )
        listed = CheckpointLine.of_store(path).checkpoints() if has_checkpoints(path) else []
        local = [
            LocalCheckpoint(
                found.path.name,
                found.manifest.id,
                found.manifest.sequence,
                {name: table.iter for name, table in found.manifest.tables.items()},
                sum(table.rows for table in found.manifest.tables.values()),
            )
            for found in listed
        ]
        return RankState(identity, closed=not (path / LIVE).exists(), checkpoints=local)


def make_rank_directory(path: Path, identity: RankIdentity) -> None:
    """Makes the directory of a new store say whose it is.

    Raises:
        ValueError: there is something else in it.
        DamoError: the system refuses.
    """
    with os_errors(f"cannot make the store {path}"):
        path.mkdir(parents=True, exist_ok=True)
        if not StoreDirectory.is_store(path):
            if names := sorted(entry.name for entry in path.iterdir()):
                raise ValueError(f"{path} is neither empty nor a store: it has {', '.join(names[:5])}")
            os.close(open_or_make(path / LOCK_FILE))
    identity.write(path)


def other_rank_error(found: list[RankIdentity]) -> CorruptionError:
    """That these are of stores that do not belong together."""
    groups = "; ".join(f"rank {one.rank} of group {one.group}" for one in found)
    return CorruptionError(f"the ranks' stores do not belong together: {groups}")
