"""Where the stores of several ranks go on from: what all of them have in common."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from damo_torchrec.checkpoints.layout import CHECKPOINTS, LOCK_FILE, ORIGIN_FILE, rank_name
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint, oldest_first
from damo_torchrec.distributed.rank_directory import LocalCheckpoint, RankState
from damo_torchrec.errors import CorruptionError, DamoError, SchemaMismatchError

_log = logging.getLogger(__name__)


def check_is_of_ranks(root: Path) -> None:
    """Raises ValueError if `root` is the store of one process."""
    if any((root / name).exists() for name in (LOCK_FILE, ORIGIN_FILE)):
        raise ValueError(f"{root} is a store of one process: the stores of several ranks need a directory of their own")


def group_of(states: Sequence[RankState], root: Path) -> str | None:
    """The id of the stores of `states`, by rank; None if all of them are new, or some, and nothing else tells.

    Raises:
        SchemaMismatchError: they do not belong together.
    """
    identities = [state.identity for state in states]
    groups = {identity.group for identity in identities if identity is not None}
    if len(groups) > 1:
        told = ", ".join(
            f"{rank_name(rank, len(states))} is of group {identity.group}"
            for rank, identity in enumerate(identities)
            if identity is not None
        )
        raise SchemaMismatchError(f"the ranks' stores in {root} do not belong together: {told}")
    return groups.pop() if groups else None


def newest_checkpoint(root: Path, group: str | None) -> RanksCheckpoint | None:
    """The newest checkpoint of all ranks of a store's root; None if there is none.

    Raises:
        CorruptionError: one is damaged, which may be the newest.
        DamoError: they are of several groups.
    """
    listed = oldest_first(root / CHECKPOINTS, group)
    return RanksCheckpoint.read(listed[-1][0]) if listed else None


def closed_at(states: Sequence[RankState], newest: RanksCheckpoint | None, root: Path) -> list[LocalCheckpoint] | None:
    """The checkpoints that the ranks' stores made as they were closed, if all of them were at one step, by rank.

    None if none is ahead of `newest`, the newest checkpoint of all ranks; or if they were not closed at one step, which
    a warning tells.

    Raises:
        CorruptionError: there is no such checkpoint, and they were not closed at one step, so that nothing is left.
    """
    ahead = [rank for rank, state in enumerate(states) if _is_ahead(state.newest, newest, rank)]
    if not ahead:
        return None
    why = _difference(states, newest)
    if why is None:
        return [state.newest for state in states if state.newest is not None]
    if newest is None:
        raise CorruptionError(
            f"{root / CHECKPOINTS} has no checkpoint of all {len(states)} ranks, and their stores cannot go on from "
            f"where they are: {why}"
        )
    _log.warning(
        "the ranks' stores in %s were not all closed at one step (%s): they go back to %s, step %d",
        root,
        why,
        newest.path.name,
        newest.manifest.step,
    )
    return None


def _is_ahead(local: LocalCheckpoint | None, newest: RanksCheckpoint | None, rank: int) -> bool:
    """Whether a rank's own newest checkpoint holds something that the newest one of all ranks does not."""
    if local is None:
        return False
    if newest is None:
        return local.rows > 0 or any(local.iters.values())
    return local.id != newest.parts[rank].id and local.sequence > newest.parts[rank].sequence


def _difference(states: Sequence[RankState], newest: RanksCheckpoint | None) -> str | None:
    """Why the stores were not closed at one step; None if they were."""
    for rank, state in enumerate(states):
        if state.identity is None or state.newest is None:
            return f"that of rank {rank} is new"
        part = newest.parts[rank] if newest is not None else None
        if part is not None and state.newest.id != part.id and state.newest.sequence < part.sequence:
            return f"that of rank {rank} is older"
    if unclosed := [rank for rank, state in enumerate(states) if not state.closed]:
        return f"those of ranks {unclosed} were not closed"
    if len({state.identity.run for state in states if state.identity is not None}) > 1:
        return "an opening of all of them was interrupted"
    iters = [state.newest.iters for state in states if state.newest is not None]
    if any(own != iters[0] for own in iters):
        return f"they had {', '.join(str(max(own.values(), default=0)) for own in iters)} updates"
    return None


def check_whole_group(states: Sequence[RankState], newest: RanksCheckpoint | None) -> None:
    """Raises CorruptionError if a rank has lost its store, and there is no checkpoint of all to go on from."""
    lost = [rank for rank, state in enumerate(states) if state.identity is None]
    if newest is None and lost and any(state.newest is not None and state.newest.rows for state in states):
        raise CorruptionError(
            f"the stores of ranks {lost} of {len(states)} are missing, while others have rows, and there is no "
            "checkpoint of all ranks to go on from"
        )


def check_world_size(newest: RanksCheckpoint, world_size: int) -> None:
    """Raises DamoError if a checkpoint is of another number of ranks: says which call spreads its rows anew."""
    if newest.world_size != world_size:
        raise DamoError(
            f"{newest.path} was made by {newest.world_size} ranks, and there are {world_size}: to have its rows spread "
            "over these, open it with damo_torchrec.distributed.open_store(..., respread=True)"
        )
