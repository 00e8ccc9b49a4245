"""`open_store`: this rank's store, at the step at which all ranks' stores are."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from damo_torchrec.checkpoints.atomic_directory import clear_unfinished
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.layout import CHECKPOINTS, rank_name, world_sizes
from damo_torchrec.checkpoints.manifest import new_id
from damo_torchrec.checkpoints.rank_identity import RankIdentity
from damo_torchrec.checkpoints.store_directory import StoreDirectory
from damo_torchrec.distributed.group import Ranks, ranks_of_default_group
from damo_torchrec.distributed.group_checkpoint import RanksCheckpoint, find, read_ranks_directory
from damo_torchrec.distributed.mixing import rank_of
from damo_torchrec.distributed.rank_directory import RankState, make_rank_directory
from damo_torchrec.distributed.respreading import Share
from damo_torchrec.distributed.starting_point import (
    check_is_of_ranks,
    check_whole_group,
    check_world_size,
    closed_at,
    group_of,
    newest_checkpoint,
)
from damo_torchrec.distributed.store_checkpoint import (
    begin_checkpoint,
    checkpoint_closed,
    closed_stores_of_others,
    note_state,
    opening_checkpoint,
    respread,
)
from damo_torchrec.errors import DamoError, SchemaMismatchError
from damo_torchrec.files import os_errors
from damo_torchrec.options import StoreOptions, parse_budget
from damo_torchrec.progress import reporting
from damo_torchrec.store.continued_rows import ContinuedRows
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Membership:
    """What a rank's store is a part of.

    Args:
        ranks: this one among the others.
        root: the directory around the ranks' stores.
        identity: whose the store is.
        keep: how many checkpoints of all ranks stay, of those that `save_model` makes without a path.
    """

    ranks: Ranks
    root: Path
    identity: RankIdentity
    keep: int | None


_memberships: weakref.WeakKeyDictionary[EmbeddingStore, Membership] = weakref.WeakKeyDictionary()


def membership_of(store: EmbeddingStore) -> Membership:
    """What a store is a part of. Raises ValueError if `open_store` did not open it."""
    membership = _memberships.get(store)
    if membership is None:
        raise ValueError(
            f"the store {store.path} is of a single process: open those of several ranks with "
            "damo_torchrec.distributed.open_store"
        )
    return membership


@dataclass(frozen=True)
class _Asked:
    """What all ranks have to ask for alike."""

    seed: int | None
    restore: str
    respread: bool


def open_store(
    path: str | os.PathLike[str],
    *,
    memory_budget: int | str = "1GiB",
    seed: int | None = None,
    restore: str | int | os.PathLike[str] = "latest",
    respread: bool = False,
    options: StoreOptions | None = None,
) -> EmbeddingStore:
    """Opens this rank's store, ``path/rank-I-of-N``, all ranks at the same step. All ranks call it.

    They are those of torch's default process group; without one, or with one process, there is one rank. They go on
    from where all of them were closed, if that was at one step; else from the newest checkpoint of all ranks,
    ``path/checkpoints/step_N``, whatever single ranks wrote afterwards, as a warning says. If there is none, they begin
    anew.

    `EmbeddingStore.close` closes one rank's store, and loses nothing where all ranks close theirs after the same step.
    What it saves counts for all with the next `open_store`. `EmbeddingStore.checkpoint` and `restore` are of this rank
    alone: `save_model` and `load_model` of this module are of all.

    Args:
        path: a directory that all ranks see, made if it does not exist. ``path/rank-I-of-N`` may be a mount or a link
            to a disk of the rank's own machine; ``path/checkpoints`` has to be the same for all.
        memory_budget: this rank's, as of `EmbeddingStore`.
        seed: as of `EmbeddingStore`; the same on all ranks.
        restore: ``"latest"``, or the step, name or path of a checkpoint of all ranks.
        respread: whether a checkpoint of another number of ranks is taken: its rows are spread over these, and a new
            checkpoint has them. Each rank reads all of it, and keeps its share.
        options: as of `EmbeddingStore`. `StoreOptions.keep_checkpoints` counts checkpoints of all ranks as well.

    Raises:
        ValueError: ranks ask for different things; there is no such checkpoint; as `EmbeddingStore`.
        SchemaMismatchError: a directory is another rank's, or not a rank's at all; the seed is another.
        CorruptionError: a part of the checkpoint is missing, damaged, or of another step than the others.
        StoreLockedError: a rank's store is open already.
        DamoError: the checkpoint is of another number of ranks; a rank has ended; the disk refuses.
        All of them on all ranks, and as one error.
    """
    options = options or StoreOptions()
    ranks = ranks_of_default_group()
    ranks.settle()
    opening = _Opening(ranks, Path(path).absolute(), _Asked(seed, str(restore), respread), memory_budget, options)
    return opening.open()


class _Opening:
    """One call of `open_store`."""

    def __init__(
        self, ranks: Ranks, root: Path, asked: _Asked, memory_budget: int | str, options: StoreOptions
    ) -> None:
        self._ranks = ranks
        self._root = root
        self._asked = asked
        self._budget = memory_budget
        self._options = options
        self._where = root / CHECKPOINTS
        self._path = root / rank_name(ranks.rank, ranks.world_size)

    def open(self) -> EmbeddingStore:
        """The store, at the step of all."""
        ranks, what = self._ranks, f"open the stores in {self._root}"
        states = ranks.together(what, self._read)
        self._check_agreed()
        found = ranks.each(what, lambda: self._find(states))
        if found is not None and found.world_size != ranks.world_size:
            found = self._respread(found)
        elif self._asked.restore == "latest":
            found = self._closed(states, found)
        group = found.manifest.group if found is not None else group_of(states, self._root)
        return self._open_all(found, group or ranks.of_first(what, new_id))

    # ------------------------------------------------------------------ what there is

    def _read(self) -> RankState:
        """The state of this rank's store, which is not open. Checks this rank's arguments."""
        parse_budget(self._budget)
        if self._options.backend == "memory":
            raise ValueError('backend="memory" keeps nothing on disk: a store of several ranks needs one')
        check_is_of_ranks(self._root)
        with os_errors(f"cannot make {self._where}"):
            self._where.mkdir(parents=True, exist_ok=True)
            if self._ranks.is_first:
                clear_unfinished(self._where)
        if StoreDirectory.is_store(self._path):
            StoreDirectory(self._path).release()  # raises if somebody has it open
        return RankState.read(self._root, self._ranks.rank, self._ranks.world_size)

    def _check_agreed(self) -> None:
        """Raises if ranks ask for different things, or see different checkpoints."""
        found = self._ranks.together(f"open the stores in {self._root}", lambda: (self._asked, self._listed()))
        asked, names = found[0]
        for rank, (other, its_names) in enumerate(found):
            if other != asked:
                raise ValueError(f"ranks ask open_store for different things: rank 0 {asked}, rank {rank} {other}")
            if its_names != names:
                raise DamoError(
                    f"{self._where} is not the same directory on all ranks: rank 0 finds the checkpoints "
                    f"{sorted(names)}, rank {rank} {sorted(its_names)}"
                )

    def _listed(self) -> dict[str, str]:
        """The ids of the checkpoints of all ranks, by name."""
        return {path.name: manifest.id for path, manifest in read_ranks_directory(self._where)[0]}

    def _find(self, states: Sequence[RankState]) -> RanksCheckpoint | None:
        """The checkpoint of all ranks to go on from, if there is one."""
        group = group_of(states, self._root)
        if self._asked.restore == "latest":
            found = newest_checkpoint(self._root, group)
        else:
            found = RanksCheckpoint.read(find(self._where, _which(self._asked.restore)))
        if found is None:
            others = [size for size in world_sizes(self._root) if size != self._ranks.world_size]
            if others and group is None:
                raise DamoError(
                    f"{self._root} holds stores of {others[0]} ranks, and there are {self._ranks.world_size}, but no "
                    "checkpoint of all of them: open them with as many ranks"
                )
            check_whole_group(states, None)
        elif not self._asked.respread:
            check_world_size(found, self._ranks.world_size)
        if found is not None and self._asked.seed not in (None, found.parts[0].seed):
            raise SchemaMismatchError(f"{found.path} has the seed {found.parts[0].seed}, got seed={self._asked.seed}")
        return found

    # ------------------------------------------------------------------ where to go on from

    def _closed(self, states: Sequence[RankState], found: RanksCheckpoint | None) -> RanksCheckpoint | None:
        """A new checkpoint of where the ranks' stores were closed, if that is ahead of `found`; or `found`."""
        ranks, what = self._ranks, f"go on from where the stores in {self._root} were closed"
        closed = ranks.each(what, lambda: closed_at(states, found, self._root))
        identity = states[0].identity
        if closed is None or identity is None:
            return found
        step = max(closed[0].iters.values(), default=0)
        new = opening_checkpoint(self._root, identity.group, identity.run, ranks.world_size, step)
        path = checkpoint_closed(ranks, self._root, closed, new)
        return ranks.each(what, lambda: RanksCheckpoint.read(path))

    def _respread(self, found: RanksCheckpoint) -> RanksCheckpoint:
        """A checkpoint of as many ranks as there are, with the rows of `found`."""
        ranks, what = self._ranks, f"spread the rows of {found.path} over {self._ranks.world_size} ranks"
        if self._asked.restore == "latest":
            path = ranks.of_first(what, lambda: closed_stores_of_others(self._root, found).path)
            found = ranks.each(what, lambda: RanksCheckpoint.read(path))
        run = ranks.of_first(what, new_id)
        new = opening_checkpoint(self._root, found.manifest.group, run, ranks.world_size, found.manifest.step)
        with reporting(self._options.progress) as progress:
            share = Share(ranks.rank, ranks.world_size, self._budget, new_id(), progress)
            path = respread(ranks, found, share, new)
        return ranks.each(what, lambda: RanksCheckpoint.read(path))

    # ------------------------------------------------------------------ opening

    def _open_all(self, found: RanksCheckpoint | None, group: str) -> EmbeddingStore:
        """Opens all ranks' stores at `found`, or as new ones, or none of them."""
        ranks, what = self._ranks, f"open the stores in {self._root}"
        identity = RankIdentity(group, ranks.rank, ranks.world_size, ranks.of_first(what, new_id))
        opened: list[EmbeddingStore] = []
        try:
            ranks.work(what, lambda: opened.append(self._open_own(found, identity)))
            (store,) = opened
            if found is None:
                new = opening_checkpoint(self._root, group, identity.run, ranks.world_size, 0)
                begin_checkpoint(ranks, store, new).result()
            else:
                note_state(store, found.manifest.id)
            ranks.together(what, lambda: identity.write(self._path))
        except BaseException:
            for store in opened:
                store.close()
            raise
        if ranks.world_size > 1:
            store.session.has_rows_of = partial(_has_rows_of, ranks.rank, ranks.world_size)
        _memberships[store] = Membership(ranks, self._root, identity, self._options.keep_checkpoints)
        _log.info(
            "opened the store %s, at step %d, as rank %d of %d", store.path, store.step, ranks.rank, ranks.world_size
        )
        return store

    def _open_own(self, found: RanksCheckpoint | None, identity: RankIdentity) -> EmbeddingStore:
        if RankIdentity.read(self._path) is None:
            make_rank_directory(self._path, identity)
        store = EmbeddingStore(
            self._path,
            memory_budget=self._budget,
            seed=self._asked.seed,
            restore="latest" if found is None else self._source(found),
            options=self._options,
        )
        if self._asked.restore == "latest":  # which is no word of the program's on which rows it goes on with
            store.session.continued_rows = ContinuedRows(self._path)
        return store

    def _source(self, found: RanksCheckpoint) -> Path:
        """This rank's part of a checkpoint, or one of the same state that its store has."""
        part = found.parts[self._ranks.rank]
        for own in reversed(CheckpointLine.of_store(self._path).checkpoints()):
            if own.manifest.id == part.id:
                return own.path
        return found.part(self._ranks.rank)


def _has_rows_of(rank: int, world_size: int, ids: torch.Tensor) -> torch.Tensor:
    return rank_of(ids, world_size) == rank


def _which(restore: str) -> str | int:
    """A checkpoint as `find` takes it."""
    return int(restore) if restore.isdecimal() else restore
