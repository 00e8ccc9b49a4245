"""The directory of a rank's store: whose it is, and what is in it before it is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.layout import LIVE, LOCK_FILE, RANK_FILE, rank_name
from damo_torchrec.checkpoints.listing import has_checkpoints
from damo_torchrec.checkpoints.rank_identity import RankIdentity
from damo_torchrec.checkpoints.regular_file import open_or_make
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.errors import SchemaMismatchError
from damo_torchrec.files import os_errors


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
