"""Whose a store is that is one of several, each with the rows of one rank: what ``rank.json`` says in its directory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document
from damo_torchrec.checkpoints.layout import (
    CHECKPOINTS,
    RANK_FILE,
    RANKS_FILE,
    complete_entries,
    rank_name,
    world_sizes,
)
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.files import replace_file

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


def check_has_all_rows(path: Path, what: str) -> None:
    """Raises ValueError if a store, or a checkpoint, is one of several ranks': `what` would have its rows alone."""
    identity = RankIdentity.read(path)
    if (identity is not None and identity.world_size > 1) or (path.parent / RANKS_FILE).is_file():
        raise ValueError(
            f"{path} has the rows of one rank of several, and {what} would be of these alone: make a store of one "
            "process of all of them with damo_torchrec.distributed.gather"
        )


def parts_of(store: Path) -> list[Path]:
    """What the checkpoints of all ranks have of the store of a rank, in their directory beside it.

    Of checkpoints of other numbers of ranks each rank has those whose number is its own modulo the number of ranks.
    """
    identity = RankIdentity.read(store)
    if identity is None:
        return []
    found = []
    for checkpoint in complete_entries(store.parent / CHECKPOINTS):
        for size in world_sizes(checkpoint):
            parts = [checkpoint / rank_name(rank, size) for rank in range(identity.rank, size, identity.world_size)]
            found += [part for part in parts if part.is_dir()]
    return sorted(found)
