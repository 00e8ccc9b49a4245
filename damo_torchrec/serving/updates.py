"""Bringing what is served from one state to the next, while requests go on.

A delta is first verified as a whole. Then requests get a state in which its rows, mapped from copies, take the place
of those in the store: from one request to the next, all of it. Once the last request of the state before has ended, the
rows are written into the store, a few at a time, which no request can tell; and in the end the files are let go of.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.ladder import Ladder
from damo_torchrec.errors import CorruptionError, SchemaMismatchError, StoreClosedError
from damo_torchrec.lookup_plan import LookupOutput
from damo_torchrec.serving.dense import DENSE_FILE, DensePart
from damo_torchrec.serving.overlay import Overlay, TableOverlay
from damo_torchrec.serving.states import State, States
from damo_torchrec.serving.working_copy import CopiedTable, UnseenRows
from damo_torchrec.store.embedding_store import EmbeddingStore

_log = logging.getLogger(__name__)
# So many rows that a request that comes meanwhile does not notice.
_ROWS_AT_A_TIME = 256


class AlreadyAppliedError(ValueError):
    """A delta is part of what is served."""


class OutOfOrderError(ValueError):
    """A delta does not follow what is served."""


@dataclass(frozen=True)
class UpdateStats:
    """How many deltas were applied, and of the last one its step, and when, in seconds since 1970."""

    applied: int = 0
    last_step: int | None = None
    last_time: float | None = None


class Updates:
    """Applies deltas, one at a time.

    Args:
        store: a working copy with its tables open.
        outputs: of the lookups, one for each table.
        states: what requests use.
        num_threads: of the dense part.
    """

    def __init__(
        self, store: EmbeddingStore, outputs: Mapping[str, LookupOutput], states: States, num_threads: int | None
    ) -> None:
        self._store = store
        self._outputs = outputs
        self._states = states
        self._num_threads = num_threads
        self._tables = {name: CopiedTable(store, name) for name in outputs}
        self._unseen: dict[str, UnseenRows] = {}
        self._one_at_a_time = threading.Lock()
        self._stopped = threading.Event()
        self.stats = UpdateStats()

    def apply(self, path: str | os.PathLike[str]) -> None:
        """What `Predictor.apply_delta` says."""
        with self._one_at_a_time:
            self._check_not_stopped()
            interrupted = bool(self._states.current.overlay)
            self.complete()
            delta = Delta.read(path, private=self._store.path)
            state = self._states.current
            if interrupted and delta.id in state.place.states:
                return
            following = self._following(state, delta)
            self._states.publish(following)
            self.stats = UpdateStats(self.stats.applied + 1, delta.step, time.time())
            self.complete()
            _log.info("applied the delta %s, of step %d", path, delta.step)

    def complete(self) -> None:
        """Writes the rows of the last delta into the store, if they are not all there. REQUIRES: no other call."""
        state = self._states.current
        if state.overlay:
            self._states.wait_for_earlier()
            self._write(state.overlay)
            self._states.publish(replace(state, overlay={}))

    def stop(self) -> None:
        """Ends a call that is writing rows, and returns when it has ended."""
        self._stopped.set()
        with self._one_at_a_time:
            pass

    def _check_not_stopped(self) -> None:
        if self._stopped.is_set():
            raise StoreClosedError("the predictor is closed")

    def _following(self, state: State, delta: Delta) -> State:
        """The state after a delta. Raises what `Predictor.apply_delta` does if there is none."""
        if delta.manifest.seed != self._store.seed:
            raise SchemaMismatchError(
                f"the delta {delta.path} is of a store with the seed {delta.manifest.seed}, expected {self._store.seed}"
            )
        if delta.id in state.place.past:
            raise AlreadyAppliedError(f"the delta {delta.path} is part of what is served: it was applied before")
        if not state.place.leads_on(delta.manifest):
            raise OutOfOrderError(
                f"the delta {delta.path} goes from step {delta.since_step} to {delta.step} and does not follow what is "
                f"served, which is at step {state.step}"
            )
        if gone := sorted(self._outputs.keys() - delta.tables.keys()):
            raise SchemaMismatchError(f"the store has no table {gone[0]!r} any more, as {delta.path} says")
        means = {name: _mean_after(delta, name) for name in state.means}
        overlay = {}
        for name, changes in delta.tables.items():
            if name not in self._outputs:  # of no use to this model
                continue
            dim = self._outputs[name].dim
            if changes.weights.shape[1:] != (dim,):
                raise SchemaMismatchError(
                    f"table {name!r} has dim {dim}, but rows of the shape {changes.weights.shape[1:]} in {delta.path}"
                )
            ladder = changes.ladder or Ladder()  # by which none is dead
            same = ladder == self._tables[name].ladder
            if len(changes.ids) or len(changes.deleted) or not same:
                overlay[name] = TableOverlay(
                    ids=changes.ids.view(np.ndarray),  # which costs less to index than np.memmap
                    weights=changes.weights.view(np.ndarray),
                    deleted=changes.deleted.view(np.ndarray),
                    unseen_rows=partial(self._unseen_rows(name), mean=means.get(name)),
                    headers=None if changes.headers is None else changes.headers.view(np.ndarray),
                    ladder=None if same else ladder,
                    stored=self._tables[name].stored,
                )
        dense = state.dense
        if DENSE_FILE in delta.files:
            dense = DensePart(delta.path / DENSE_FILE, delta.read_file(DENSE_FILE), self._num_threads)
            dense.check(self._store.seed, self._store.session.catalog.manifest.tables)
            dense.check_replaces(state.dense)
            if dense.card.step != delta.step:
                raise CorruptionError(f"{dense.file} is of step {dense.card.step}, but its rows of step {delta.step}")
        place = state.place.after(delta.manifest)
        return State(dense, overlay, delta.step, (*state.history, delta.id), place, means)

    def _unseen_rows(self, table: str) -> UnseenRows:
        if table not in self._unseen:
            self._unseen[table] = UnseenRows(self._store, self._outputs[table])
        return self._unseen[table]

    def _write(self, overlay: Overlay) -> None:
        for name, changes in overlay.items():
            if changes.ladder is not None:
                self._tables[name].follow(changes.ladder)
        # Deletions wait for rows that are on their way to the disk: before anything else there are none.
        for name, changes in overlay.items():
            for part in self._parts(len(changes.deleted)):
                self._tables[name].delete(changes.deleted[part])
        for name, changes in overlay.items():
            for part in self._parts(len(changes.ids)):
                headers = None if changes.headers is None else changes.headers[part]
                self._tables[name].set(changes.ids[part], changes.weights[part], headers)

    def _parts(self, n: int) -> Iterator[slice]:
        """Few rows at a time, with as much time between them for requests."""
        for first in range(0, n, _ROWS_AT_A_TIME):
            self._check_not_stopped()
            begin = time.perf_counter()
            yield slice(first, first + _ROWS_AT_A_TIME)
            time.sleep(time.perf_counter() - begin)


def _mean_after(delta: Delta, table: str) -> list[float]:
    """The mean of a table's rows after a delta. Raises SchemaMismatchError if it does not say."""
    if mean := delta.manifest.tables[table].mean:
        return mean
    raise SchemaMismatchError(
        f"ids without a row of table {table!r} read the mean of its rows, which {delta.path} lacks: where it was made, "
        'no collection had opened the table with unseen_in_eval="mean"'
    )
