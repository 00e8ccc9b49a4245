"""`DeltaPublisher`: what a training changes, every so often, for predictors that watch a directory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.lineage import StoreState
from damo_torchrec.errors import DamoError
from damo_torchrec.serving.delta_shelf import DeltaShelf
from damo_torchrec.serving.dense import DENSE_FILE
from damo_torchrec.serving.publication import Publication, plan
from damo_torchrec.serving.published import Published
from damo_torchrec.serving.refresh import DenseGraph, digest_of
from damo_torchrec.serving.served_start import Start
from damo_torchrec.store.changed_rows import Differences
from damo_torchrec.store.delta_writer import Additions, write_delta
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NextDelta:
    """A delta that is to be made.

    Args:
        path: a new directory.
        base: the state that it is since.
        additions: what it has besides the rows that changed.
        pending: deltas that it leads back from.
    """

    path: Path
    base: StoreState
    additions: Additions
    pending: Sequence[Published]


class DeltaPublisher:
    """Exports what changed since it last did, every so many steps or seconds.

    ::

        damo.serving.export(model, args, "serving")  # for Predictor("serving").watch("deltas")
        publisher = DeltaPublisher(store, "deltas", model=model, args=args, every_seconds=10, keep=100)
        for batch in batches:
            ...  # one step of training
            publisher.step()

    A delta goes from the one before to the next: a predictor needs all of them since its checkpoint. Each is complete
    as soon as it is there, as ``delta-N``, N being the store's step. All that changes is published: rows that are
    trained, set or deleted, and dense weights, with a step of training or without.

    A training that goes back to a checkpoint leaves deltas behind that lead nowhere. The next publisher, or the next
    call of this one, hides them, and its next delta leads back from there: predictors that applied them follow as all
    others do. One process at a time publishes into a directory, and from one store.

    Args:
        store: where the rows are.
        directory: where deltas go; made if it does not exist. What a killed process left unfinished there is removed.
        since: what servers begin from: a checkpoint of the store or a delta, by its path or step. None: what
            `damo_torchrec.serving.export` made last of this store; or else the newest delta in `directory`; or else
            the store's newest checkpoint. Deltas in `directory` that lead on from there are gone on with.
        model: whose dense part goes with the rows; None for rows alone.
        args: what the model's forward is called with, as of `damo_torchrec.serving.export`.
        every_steps: how many calls of `step` there are from one delta to the next.
        every_seconds: the least time between two deltas. With `every_steps` too, whichever comes first.
        keep: how many deltas stay; None for all of them. The oldest are folded into one, so that what is served from
            any state before still follows. Nothing else in `directory` is removed.

    Raises:
        ValueError: neither `every_steps` nor `every_seconds` is given, or one of the numbers is not positive; there is
            a model without `args`; `since` has nothing to do with the store's past.
        DamoError: the directory cannot be made.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        directory: str | os.PathLike[str],
        *,
        since: str | int | os.PathLike[str] | None = None,
        model: nn.Module | None = None,
        args: Any = None,
        every_steps: int | None = None,
        every_seconds: float | None = None,
        keep: int | None = None,
    ) -> None:
        if every_steps is None and every_seconds is None:
            raise ValueError("a DeltaPublisher needs every_steps, every_seconds or both")
        for name, value in (("every_steps", every_steps), ("every_seconds", every_seconds), ("keep", keep)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if model is not None and args is None:
            raise ValueError("a DeltaPublisher with a model needs args to trace it with")
        self._store = store
        self._shelf = DeltaShelf(Path(directory).absolute())
        self._given = None if since is None else Start.given(store, since)
        self._dense = DenseGraph(model, args) if model is not None else None
        self._every_steps = every_steps
        self._every_seconds = every_seconds
        self._keep = keep
        self._steps = 0
        self._last = time.monotonic()
        with store.session.mutex:
            self._shelf.clear_unfinished()
            self._settle()

    @property
    def directory(self) -> Path:
        """Where the deltas are."""
        return self._shelf.directory

    def deltas(self) -> list[Path]:
        """The deltas that publishers have made here and that servers see, oldest first."""
        return self._shelf.deltas()

    def step(self) -> Path | None:
        """To be called after each step of training. Publishes a delta if one is due; returns what `publish` does."""
        self._steps += 1
        by_steps = self._every_steps is not None and self._steps >= self._every_steps
        by_time = self._every_seconds is not None and time.monotonic() - self._last >= self._every_seconds
        return self.publish() if by_steps or by_time else None

    def publish(self) -> Path | None:
        """Publishes a delta now. Returns it, or None if all that was published is as the store and the model are.

        Raises:
            ValueError: the store has nothing to do with what servers begin from, as after going back behind all that it
                remembers: the model must be exported anew.
            RuntimeError: torch.onnx cannot export the dense part.
            OutOfSpaceError, DamoError: the disk is full or refuses. The next delta will hold what this one would have.
        """
        with self._store.session.mutex:
            if (due := self.next()) is None:
                return None
            path = write_delta(self._store.session, due.path, due.base, due.additions)
            self.end(due)
        self.fold(path)
        return path

    def next(self) -> NextDelta | None:
        """The delta that `publish` would make now; None if it would make none. REQUIRES: the session's mutex."""
        self._steps = 0
        self._last = time.monotonic()
        publication, otherwise, start = self._settle_and_read()
        dense = None if self._dense is None else self._dense.now()
        return self._next(publication, otherwise, dense) if self._is_due(publication, start, dense) else None

    def end(self, made: NextDelta) -> None:
        """Removes deltas that one leads back from which is there now."""
        for delta in made.pending:
            self._shelf.remove(delta)

    def fold(self, newest: Path) -> None:
        """Has no more deltas lead to the newest than are to stay."""
        if self._keep is not None:
            self._shelf.fold(newest, self._keep)

    # ------------------------------------------------------------------ what there is to publish

    def _settle(self) -> tuple[Publication, Start]:
        """Has servers see the deltas of the store's past, and none that it has gone back behind."""
        start = self._given or Start.noted(self._store)
        lineage = self._store.session.catalog.lineage
        deltas = self._shelf.read()
        if start is None and plan(lineage, deltas, []).base is None:
            start = Start.newest(self._store)
        try:
            publication = plan(lineage, deltas, [] if start is None else start.states)
        except ValueError as error:
            raise ValueError(
                f"no delta of the store {self._store.path} can lead on from {start}: {error}. Export the model anew, "
                "and have servers begin from there"
            ) from None
        return self._shelf.settle(publication), start or Start("the deltas that are there", [])

    def _settle_and_read(self) -> tuple[Publication, Differences, Start]:
        """The same, with the rows that may be otherwise in the states that the next delta leads back from."""
        while True:
            publication, start = self._settle()
            otherwise = Differences()
            if publication.stray is not None:
                otherwise = start.differences_since(publication.stray)
            for delta in publication.pending:
                try:
                    otherwise = otherwise.united(_differences_in(delta))
                except (DamoError, ValueError) as error:
                    _log.error("servers that have applied %s need a new export: %s", delta.path, error)
                    self._shelf.remove(delta)
                    break
            else:
                return publication, otherwise, start

    def _is_due(self, publication: Publication, start: Start, dense: bytes | None) -> bool:
        """Whether the next delta brings anything to anybody."""
        last, lineage = publication.last, self._store.session.catalog.lineage
        if publication.pending or publication.stray is not None or not lineage.unchanged:
            return True
        if last is None:
            reached = publication.base is not None and lineage.last.id == publication.base.id
            served = [start.dense()]
        else:
            same = (last.id, last.manifest.same_rows)
            reached = publication.leads_on and lineage.last.id in same
            served = [(last.path / DENSE_FILE).read_bytes() if DENSE_FILE in last.manifest.files else None]
            if start.checkpoint is not None and start.states[-1] in same:  # exported since, maybe with other weights
                served.append(start.dense())
        return not reached or (dense is not None and any(d is None or digest_of(d) != digest_of(dense) for d in served))

    def _next(self, publication: Publication, otherwise: Differences, dense: bytes | None) -> NextDelta:
        base, lineage = publication.base, self._store.session.catalog.lineage
        assert base is not None
        abandoned = [state for delta in publication.pending for state in (delta.id, *delta.line)]
        abandoned += publication.strays
        known = [delta.manifest.sequence for delta in (*publication.live, *publication.pending)]
        additions = Additions(
            files={} if dense is None else {DENSE_FILE: dense},
            states=publication.states(lineage),
            abandoned=abandoned,
            otherwise=otherwise,
            after=max([self._store.session.catalog.manifest.sequence, *known]),
        )
        lineage.mark(base)
        return NextDelta(self._shelf.free_name(self._store.step), base, additions, publication.pending)


def _differences_in(published: Published) -> Differences:
    tables = Delta.read(published.path).tables
    changed = Differences({name: table.ids for name, table in tables.items()})
    deleted = Differences({name: table.deleted for name, table in tables.items()})
    dead = Differences(ladders={name: table.ladder for name, table in tables.items() if table.ladder is not None})
    return changed.united(deleted).united(dead)
