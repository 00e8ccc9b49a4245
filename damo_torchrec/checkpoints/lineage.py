"""The states that a store went through: what a delta can begin from.

A state is a moment of a store that has a name: a checkpoint, or the end of a delta. The lineage of a store is its
states in their order. It is kept in checkpoints, so that it goes on where a store does; going back to a checkpoint
drops what came after it.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.document import parse
from damo_torchrec.checkpoints.layout import DELTA_FILE, LINEAGE_FILE
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import read_regular

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

    @staticmethod
    def of(manifest: Manifest) -> "StoreState":
        """That of a checkpoint."""
        return StoreState(manifest.id, manifest.step, {name: table.iter for name, table in manifest.tables.items()})


class Lineage:
    """The latest states of a store, oldest first; some dozens of them are remembered."""

    def __init__(self, states: Iterable[StoreState] = ()) -> None:
        self._states = list(states)[-_KEPT:]

    def add(self, state: StoreState) -> None:
        """Notes that the store is at `state` now."""
        self._states = [*self._states, state][-_KEPT:]

    def __contains__(self, state: StoreState) -> bool:
        return state in self._states

    def may_have_forgotten(self, state: StoreState) -> bool:
        """Whether `state`, which is not there, may have been: all that are remembered are as late, or later."""
        return len(self._states) == _KEPT and self._states[0].step >= state.step

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
        known = ", ".join(str(state.step) for state in self._states)
        raise ValueError(f"since={since!r} is no state of this store that it remembers; those are of the steps {known}")

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
        states: list[StoreState] = []
        if LINEAGE_FILE in manifest.files:
            try:
                states = parse(json.loads(read_regular(checkpoint / LINEAGE_FILE)), list[StoreState], LINEAGE_FILE)
            except (OSError, ValueError) as error:
                raise CorruptionError(f"{checkpoint / LINEAGE_FILE} is damaged: {error}") from error
        return Lineage([*states, StoreState.of(manifest)])


def _id_at(path: Path) -> str | None:
    if (path / DELTA_FILE).is_file():
        return Delta.read(path).id
    return Manifest.read(path).id if is_checkpoint(path) else None
