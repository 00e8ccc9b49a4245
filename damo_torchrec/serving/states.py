"""The state that requests are answered from, which changes as a whole while they go on."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from damo_torchrec.errors import StoreClosedError
from damo_torchrec.serving.dense import DensePart
from damo_torchrec.serving.overlay import Overlay
from damo_torchrec.serving.place import Place


@dataclass(frozen=True, eq=False)
class State:
    """What one request is answered from.

    Args:
        dense: the dense part.
        overlay: rows that take the place of those in the store.
        step: of the rows.
        history: ids of the checkpoint that it comes from, and of the deltas since.
        place: where that is among the states that the store went through.
        means: of the rows, by table, where ids without a row read that.
    """

    dense: DensePart
    overlay: Overlay
    step: int
    history: tuple[str, ...]
    place: Place
    means: Mapping[str, list[float]]


class States:
    """The current state, and how many requests use it or one before it. Thread-safe.

    Args:
        of: whose they are, for messages.
        first: the current one.
    """

    def __init__(self, of: str, first: State) -> None:
        self._of = of
        self._changed = threading.Condition()
        self._current: State = first
        self._users: Counter[State] = Counter()
        self._closed = False

    @property
    def current(self) -> State:
        """What the next request will use."""
        return self._current

    @contextmanager
    def use(self) -> Iterator[State]:
        """The current state, which stays as it is until the end of the block. Raises StoreClosedError after `close`."""
        with self._changed:
            if self._closed:
                raise StoreClosedError(f"{self._of} is closed")
            state = self._current
            self._users[state] += 1
        try:
            yield state
        finally:
            with self._changed:
                self._users[state] -= 1
                if self._users[state] == 0:
                    del self._users[state]
                    self._changed.notify_all()

    def publish(self, state: State) -> None:
        """Has requests that begin from now on use `state`."""
        with self._changed:
            self._current = state

    def wait_for_earlier(self) -> None:
        """Returns when no request uses a state from before the current one."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users.keys() - {self._current})

    def close(self) -> None:
        """Lets no request begin, and returns when all have ended."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._users)
