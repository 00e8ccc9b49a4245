"""The states that a store went through: what a delta can begin from.

A state is a moment of a store that has a name: a checkpoint, or the end of a delta. The lineage of a store is its
states in their order. It is kept in checkpoints, so that it goes on where a store does; going back to a checkpoint
drops what came after it.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.document import load_json, parse, shown
from damo_torchrec.checkpoints.layout import DELTA_FILE, LINEAGE_FILE
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.errors import CorruptionError

_KEPT = 64


@dataclass(frozen=True)
class StoreState:
    """A moment of a store.

    Args:
        id: a checkpoint's, or a delta's.
        step: the store's.
        iters: updates of each table, by name.
    """

    id: str
    step: Annotated[int, range(2**32)]
    iters: dict[str, Annotated[int, range(2**32)]]

    def check(self) -> None:
        """Raises ValueError if its parts contradict each other."""
        check_id("the id of a state", self.id)
        if self.step != (largest := max(self.iters.values(), default=0)):
            raise ValueError(f"the step of a state is {self.step}, but its largest iter is {largest}")

    @staticmethod
    def of(manifest: Manifest) -> "StoreState":
        """That of a checkpoint."""
        return StoreState(manifest.id, manifest.step, {name: table.iter for name, table in manifest.tables.items()})


class Lineage:
    """The latest states of a store, oldest first; some dozens of them are remembered.

    Args:
        states: these.
        begun_by: what has no delta begin from the states before, such as ``"table 't' was dropped"``; empty for
            nothing.
    """

    def __init__(self, states: Iterable[StoreState] = (), begun_by: str = "") -> None:
        self._states = list(states)[-_KEPT:]
        self._begun_by = begun_by

    def add(self, state: StoreState) -> None:
        """Notes that the store is at `state` now."""
        self._states = [*self._states, state][-_KEPT:]

    def __contains__(self, state: StoreState) -> bool:
        return state in self._states

    def may_have_forgotten(self, state: StoreState) -> bool:
        """Whether `state`, which is not there, may have been: all that are remembered are as late, or later."""
        return bool(self._begun_by) or (len(self._states) == _KEPT and self._states[0].step >= state.step)

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
        why = f" (since then {self._begun_by})" if self._begun_by else ""
        raise ValueError(
            f"since={since!r} is no state of this store that it remembers{why}; those are of the steps {known}. What "
            "serves from another state needs a new base: a checkpoint, or an export, of now"
        )

    def ids_from(self, state: StoreState) -> list[str]:
        """Those of `state` and all that came after it."""
        return [s.id for s in self._states[self._states.index(state) :]]

    def dump(self) -> bytes:
        """What `read` reads."""
        return json.dumps([asdict(state) for state in self._states]).encode()

    @staticmethod
    def read(checkpoint: Path, manifest: Manifest) -> "Lineage":
        """The lineage that leads to a checkpoint. Earlier releases wrote none: it begins there.

        Raises:
            CorruptionError: it is damaged.
        """
        if LINEAGE_FILE not in manifest.files:
            return Lineage([StoreState.of(manifest)])
        content = manifest.read_file(checkpoint, LINEAGE_FILE)
        try:
            states: list[StoreState] = parse(load_json(content), list[StoreState], "states")
            _check_states(states, StoreState.of(manifest))
        except (ValueError, RecursionError) as error:
            raise CorruptionError(f"{checkpoint / LINEAGE_FILE} is damaged: {error}") from error
        return Lineage([*states, StoreState.of(manifest)])


def _check_states(states: Sequence[StoreState], last: StoreState) -> None:
    """Raises ValueError if these cannot have led to `last`."""
    if len(states) > _KEPT:
        raise ValueError(f"{len(states)} states, at most {_KEPT} are kept")
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
        return Delta.read(path).id
    return Manifest.read(path).id if is_checkpoint(path) else None
