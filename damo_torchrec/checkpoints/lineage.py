"""The states that a store went through: what a delta can begin from.

A state is a moment of a store that has a name: a checkpoint, or the end of a delta. Checkpoints between which no row
changes are of one state. The lineage of a store is its states in their order. It is kept in checkpoints, so that it
goes on where a store does; going back to a checkpoint drops what came after it.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.checkpoints.document import MAY_LACK, load_json, parse, shown
from damo_torchrec.checkpoints.layout import DELTA_FILE, FORGOTTEN_FILE, LINEAGE_FILE
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.errors import CorruptionError

_KEPT = 64  # of landmarks, and of other states
_AGED = 16  # times as many states after it, in one session, a landmark is as others: else one that never ends keeps all


@dataclass(frozen=True)
class StoreState:
    """A moment of a store.

    Args:
        id: a checkpoint's, or a delta's.
        step: the store's.
        iters: updates of each table, by name.
        landmark: whether deltas are likely to go on from it: it was published, or a session began there.
        lives: names of the tables whose rows died then: what is served from there knows when each was updated.
    """

    id: str
    step: Annotated[int, range(2**32)]
    iters: dict[str, Annotated[int, range(2**32)]]
    landmark: bool = False
    lives: list[str] = field(default_factory=list, metadata=MAY_LACK)

    def check(self) -> None:
        """Raises ValueError if its parts contradict each other."""
        check_id("the id of a state", self.id)
        if self.step != (largest := max(self.iters.values(), default=0)):
            raise ValueError(f"the step of a state is {self.step}, but its largest iter is {largest}")
        if unknown := sorted({*self.lives} - self.iters.keys()):
            raise ValueError(f"rows of {shown(unknown)} die, which are no tables of the state")

    @staticmethod
    def of(manifest: Manifest) -> "StoreState":
        """That of a checkpoint."""
        iters = {name: table.iter for name, table in manifest.tables.items()}
        lives = [name for name, table in manifest.tables.items() if table.life is not None]
        return StoreState(manifest.id, manifest.step, iters, lives=lives)


class Lineage:
    """The latest states of a store, oldest first; some dozens of them, and of landmarks, are remembered.

    Args:
        states: these.
        begun_by: what has no delta begin from the states before, such as ``"table 't' was dropped"``; empty for
            nothing.

    Attributes:
        begun_by: as given.
        unchanged: whether rows are as they were in the last state.
    """

    def __init__(self, states: Iterable[StoreState] = (), begun_by: str = "") -> None:
        self._states: list[StoreState] = []
        self._ages: dict[str, int] = {}  # of landmarks: how many states came after them, in this session
        self.begun_by = begun_by
        self.unchanged = False
        for state in states:
            self.add(state)

    def add(self, state: StoreState) -> None:
        """Notes that the store is at `state` now, which may be the last one still."""
        before = [other for other in self._states if other.id != state.id]
        if len(before) < len(self._states):
            state = replace(state, landmark=state.landmark or self._states[-1].landmark)
        elif self._states:
            before = [self._aged(other) for other in before]
        states = [*before, state]
        dropped = [[s.id for s in states if s.landmark is kind][:-_KEPT] for kind in (False, True)]
        self._states = [s for s in states if s.id not in {*dropped[0], *dropped[1]}]
        self._ages = {s.id: self._ages.get(s.id, 0) for s in self._states if s.landmark}
        self.unchanged = True

    def _aged(self, state: StoreState) -> StoreState:
        """As it is remembered once there is another state after it."""
        self._ages[state.id] = self._ages.get(state.id, 0) + 1
        return replace(state, landmark=state.landmark and self._ages[state.id] <= _AGED * _KEPT)

    def note_change(self) -> None:
        """Notes that rows are no longer as in the last state."""
        self.unchanged = False

    def mark(self, state: StoreState) -> None:
        """Has a state of it be a landmark, which is remembered for longer than others."""
        self._states = [replace(s, landmark=True) if s.id == state.id else s for s in self._states]
        self._ages[state.id] = 0

    def unchanged_id(self, iters: Mapping[str, int], lives: Iterable[str]) -> str | None:
        """The id of the last state, if the store is in it still and its tables have had these updates.

        Tables that were made since, and have no rows, make no difference. Those whose rows die, `lives`, do where they
        did not die then: from there they are served without what it takes to know which are dead.
        """
        if not (self._states and self.unchanged and {*lives} <= {*self.last.lives}):
            return None
        before, now = ({name: n for name, n in of.items() if n} for of in (self.last.iters, iters))
        return self.last.id if before == now else None

    @property
    def last(self) -> StoreState:
        """The last state. REQUIRES: there is one, as in every store that has checkpoints."""
        return self._states[-1]

    def ids(self) -> list[str]:
        """Those of all states that are remembered, oldest first."""
        return [state.id for state in self._states]

    def get(self, state: str) -> StoreState | None:
        """The state of this id; None if the store was not in it, or that was too long ago."""
        return next((s for s in self._states if s.id == state), None)

    def find(self, since: int | str | os.PathLike[str]) -> StoreState:
        """The first state at a step, or that of a checkpoint's or a delta's directory.

        Raises:
            ValueError: the store was not in that state, or that was too long ago; the path holds neither.
            CorruptionError: what it holds is damaged.
        """
        if isinstance(since, bool) or not isinstance(since, int | str | os.PathLike):
            raise TypeError(f"since must be a step, or the path of a checkpoint or a delta, got {since!r}")
        wanted = since if isinstance(since, int) else _id_at(Path(since))
        for state in self._states:
            if wanted in (state.step, state.id):
                return state
        known = ", ".join(str(state.step) for state in self._states) or "none"
        why = f" (since then {self.begun_by})" if self.begun_by else ""
        raise ValueError(
            f"since={since!r} is no state of this store that it remembers{why}; those are of the steps {known}. What "
            "serves from another state needs a new base: a checkpoint, or an export, of now"
        )

    def ids_from(self, state: StoreState) -> list[str]:
        """Those of `state` and all that came after it."""
        ids = self.ids()
        return ids[ids.index(state.id) :]

    def least_iter(self, table: str) -> int:
        """The fewest updates that a table had had in one of these states; 0 if none has it.

        In those before the table was made it had no rows: nothing of it is to be deleted by a delta since then.
        """
        return min((state.iters[table] for state in self._states if table in state.iters), default=0)

    def dump(self, checkpoint: str) -> bytes:
        """What `read` reads beside the checkpoint of that id, which may be of the last state."""
        return json.dumps([_body(state) for state in self._states if state.id != checkpoint]).encode()

    @staticmethod
    def read(checkpoint: Path, manifest: Manifest) -> "Lineage":
        """The lineage that leads to a checkpoint. Earlier releases wrote none: it begins there.

        Rows of a checkpoint that some were taken out of are not as in its state.

        Raises:
            CorruptionError: it is damaged.
        """
        states: list[StoreState] = []
        if LINEAGE_FILE in manifest.files:
            content = manifest.read_file(checkpoint, LINEAGE_FILE)
            try:
                states = parse(load_json(content), list[StoreState], "states")
                _check_states(states, StoreState.of(manifest))
            except (ValueError, RecursionError) as error:
                raise CorruptionError(f"{checkpoint / LINEAGE_FILE} is damaged: {error}") from error
        lineage = Lineage([*states, replace(StoreState.of(manifest), landmark=True)])
        if FORGOTTEN_FILE in manifest.files:  # who is in this state otherwise may have rows that are gone from here
            lineage.note_change()
        return lineage


def _body(state: StoreState) -> dict[str, Any]:
    """As earlier releases have it, where no rows die."""
    body = asdict(state)
    return body if state.lives else {name: value for name, value in body.items() if name != "lives"}


def _check_states(states: Sequence[StoreState], last: StoreState) -> None:
    """Raises ValueError if these cannot have led to `last`."""
    for landmark in (False, True):
        if (found := sum(state.landmark is landmark for state in states)) > _KEPT:
            raise ValueError(f"{found} states, at most {_KEPT} are kept")
    for earlier, later in pairwise([*states, last]):
        earlier.check()
        if earlier.step > later.step:
            raise ValueError(f"a state at step {earlier.step} comes before one at {later.step}")
        if unknown := sorted(earlier.iters.keys() - last.iters.keys()):
            raise ValueError(f"a state has tables that the checkpoint has not: {shown(unknown)}")
    if len({state.id for state in [*states, last]}) <= len(states):
        raise ValueError("two states have one id")


def _id_at(path: Path) -> str | None:
    if (path / DELTA_FILE).is_file():
        return DeltaManifest.read(path).id
    return Manifest.read(path).id if is_checkpoint(path) else None
