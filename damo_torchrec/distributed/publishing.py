"""`DeltaPublisher` of several ranks: what all of them change, as one delta for predictors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.folding import join_deltas
from damo_torchrec.checkpoints.layout import rank_name
from damo_torchrec.checkpoints.manifest import new_id
from damo_torchrec.distributed.means import mean_of_all
from damo_torchrec.distributed.rank_stores import membership_of
from damo_torchrec.files import os_errors
from damo_torchrec.serving import publisher
from damo_torchrec.serving.publisher import NextDelta
from damo_torchrec.store.delta_writer import write_delta
from damo_torchrec.store.embedding_store import EmbeddingStore

_PARTS = ".parts"  # of a delta that is being made; no server looks at what begins with a dot


class DeltaPublisher:
    """`damo_torchrec.serving.DeltaPublisher` of all ranks' stores: every rank makes one, and calls it alike.

    ::

        damo.distributed.save_model(model, "export-from")  # all ranks; then one process:
        damo.distributed.gather("export-from", "one")  # and damo.serving.export of the model over it, to "serving"
        publisher = damo.distributed.DeltaPublisher(store, "deltas", since="serving", every_steps=100)

    Each rank writes what is its own at the same step, and rank 0 makes one delta of that, which appears whole or not
    at all. It is like any other: of rows, deletions and what rows are dead, of all ranks. If one rank fails, all raise,
    and the next delta has what this one would have had.

    Args:
        store: this rank's, of `open_store`.
        directory: that all ranks see; as there.
        since: the export of a gathered checkpoint, or a delta, by its path, from which servers begin; the same on all
            ranks. None: the newest delta in `directory`.
        model: whose dense part goes with the rows; None for rows alone. It is another one than is trained: over this
            rank's store, and not sharded. Its dense weights have to be set to those of now before each call; rank 0's
            count.
        args: as there.
        every_steps: as there. Clocks of ranks differ, so there is no `every_seconds`.
        keep: as there.

    Raises:
        ValueError: as there; or the store is of a single process.
        DamoError: the directory cannot be made, or another rank has ended.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        directory: str | os.PathLike[str],
        *,
        since: str | os.PathLike[str] | None = None,
        model: nn.Module | None = None,
        args: Any = None,
        every_steps: int,
        keep: int | None = None,
    ) -> None:
        self._store = store
        self._ranks = membership_of(store).ranks
        self._directory = Path(directory).absolute()
        self._every_steps = every_steps
        self._steps = 0
        self._first: publisher.DeltaPublisher | None = None  # rank 0's, which says what comes next
        self._files: Mapping[str, bytes] = {}  # that rank 0's part of the next delta has besides rows

        def begin() -> None:
            if self._ranks.is_first:
                self._first = publisher.DeltaPublisher(
                    store, directory, since=since, model=model, args=args, every_steps=every_steps, keep=keep
                )
                shutil.rmtree(self._directory / _PARTS, ignore_errors=True)

        self._ranks.settle()
        self._ranks.each("begin to publish deltas", begin)

    def step(self) -> Path | None:
        """To be called after each step of training. Publishes a delta if one is due; returns what `publish` does."""
        self._steps += 1
        return self.publish() if self._steps >= self._every_steps else None

    def publish(self) -> Path | None:
        """Publishes a delta now. Returns it, or None if all that was published is as the stores and the model are.

        Raises:
            ValueError: as of `damo_torchrec.serving.DeltaPublisher`; or a rank does not remember the state that it
                would have to begin from.
            RuntimeError: torch.onnx cannot export the dense part.
            OutOfSpaceError, DamoError: the disk of a rank is full or refuses, or one has ended. The next delta will
                hold what this one would have.
            All of them on all ranks.
        """
        self._steps = 0
        ranks = self._ranks
        ranks.settle()
        with self._store.session.mutex:
            due = ranks.of_first("find out what to publish", self._next)
            if due is None:
                return None
            try:
                self._write(due)
            finally:
                if ranks.is_first:
                    shutil.rmtree(self._directory / _PARTS, ignore_errors=True)
        ranks.each("remove deltas that are not needed any more", lambda: self._end(due))
        return due.path

    def _next(self) -> NextDelta | None:
        """What rank 0 says, without files besides rows, which are its own matter."""
        assert self._first is not None
        if (due := self._first.next()) is None:
            return None
        self._files = due.additions.files
        return replace(due, additions=replace(due.additions, files={}, state=new_id()))

    def _end(self, due: NextDelta) -> None:
        if self._first is not None:
            self._first.end(due)
            self._first.fold(due.path)

    def _write(self, due: NextDelta) -> None:
        """Has all ranks write their parts, and rank 0 the whole."""
        ranks, session = self._ranks, self._store.session
        parts = [self._directory / _PARTS / rank_name(rank, ranks.world_size) for rank in range(ranks.world_size)]
        own = replace(due.additions, files=self._files)
        ranks.of_first("make a directory for the parts of a delta", lambda: _make(self._directory / _PARTS))

        def write() -> dict[str, tuple[list[float], int]]:
            base = session.catalog.lineage.get(due.base.id)
            if base is None:
                raise ValueError(
                    f"the store {session.path} does not remember the state {due.base.id}, since which the delta has to "
                    "be: since= must be an export of a checkpoint of all ranks, or of a delta of theirs"
                )
            write_delta(session, parts[ranks.rank], base, own)
            return self._means()

        means = ranks.together("write a part of a delta", write)
        of_all = {name: mean_of_all([of_rank[name] for of_rank in means]) for name in means[0]}
        ranks.of_first("complete a delta", lambda: str(join_deltas(parts, due.path, of_all)))

    def _means(self) -> dict[str, tuple[list[float], int]]:
        """By table whose ids without a row read the mean: that of this rank's rows, and how many they are."""
        tables = self._store.tables().values()
        read = [table for table in tables if table.opened.definition.unseen_in_eval == "mean"]
        return {table.name: (table.mean_weights(), len(table)) for table in read}


def _make(path: Path) -> None:
    with os_errors(f"cannot make {path}"):
        path.mkdir()
