"""A plain model of lines of states: what two runs with one directory of checkpoints have after any sequence of calls.

What a state holds is the set of ids that were trained, each once; so the store's step is their number.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class State:
    """A moment of a store. Two are one if no row has changed from the one to the other, whatever was made of it."""

    ids: frozenset[int] = frozenset()


@dataclass
class Shelf:
    """A directory of checkpoints, oldest first."""

    made: dict[str, tuple[object, State]] = field(default_factory=dict)  # by name: the line, and what it holds

    def put(self, line: object, step: int, state: State, keep: int) -> str:
        """A new checkpoint; of its line the newest `keep` stay. Returns its name."""
        suffixes = [
            int(rest or 0) for name in self.made for at, _, rest in [name.partition(".")] if at == f"step_{step}"
        ]
        suffix = max(suffixes, default=-1) + 1
        name = f"step_{step}.{suffix}" if suffix else f"step_{step}"
        self.made[name] = (line, state)
        for outdated in self.names(line)[:-keep]:
            del self.made[outdated]
        return name

    def names(self, line: object) -> list[str]:
        """Those of a line, oldest first."""
        return [name for name, (its, _) in self.made.items() if its is line]


class RunModel:
    """A store, and the directory that it shares with others.

    Args:
        shared: that directory, in which the newest `keep` of a line stay.
        keep: likewise.
        keep_inside: how many of its own the store keeps.
    """

    def __init__(self, shared: Shelf, keep: int, keep_inside: int) -> None:
        self._shared, self._keep, self._keep_inside = shared, keep, keep_inside
        self.begin_anew()

    def begin_anew(self) -> None:
        """The store is removed, and made again."""
        self.line = object()
        self.inside = Shelf()
        self._now = State()
        self.changed = True
        self.checkpoint()

    @property
    def state(self) -> frozenset[int]:
        """The ids that are there."""
        return self._now.ids

    def train(self, i: int) -> None:
        self._now = State(self.state | {i})
        self.changed = True

    def checkpoint(self) -> None:
        """By the store, inside it: if there is anything that its newest does not hold."""
        if self.changed:
            self.inside.put(self.line, len(self.state), self._now, self._keep_inside)
            self.changed = False

    def save(self, step: int) -> str:
        """By a manager, in the shared directory."""
        return self._shared.put(self.line, step, self._now, self._keep)

    def shared_names(self) -> list[str]:
        """Of whatever line."""
        return [*self._shared.made]

    def newest(self) -> str | None:
        """What a manager restores."""
        return next(reversed(self._shared.names(self.line)), None)

    def restore(self, name: str) -> None:
        """Of whatever line."""
        state = self._shared.made[name][1]
        if self.changed or self._now is not state:
            self._now, self.changed = state, True

    def crash(self) -> None:
        """And open again."""
        name = self.inside.names(self.line)[-1]
        self._now = self.inside.made[name][1]
        self.changed = False

    def prune(self, keep: int) -> None:
        for outdated in self.inside.names(self.line)[:-keep]:
            del self.inside.made[outdated]
