"""One training in many lives: when each is killed, and whether it had come back to where it should have."""

import contextlib
import math
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any, ClassVar

from chaos.model import Digests
from chaos.training import PHASES, Truth, train, undisturbed
from processes import started

Message = tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """When a process gets which signals.

    Args:
        phase: when it has entered this for the `occurrence`-th time; None: when it has said anything.
        occurrence: from 1.
        signals: with the seconds from there to the first, and from each to the next.
        patience: seconds that the first waits for the phase at most, from when the process has said anything.
    """

    phase: str | None
    occurrence: int
    signals: tuple[tuple[float, Signals], ...]
    patience: float = 1.0

    NOTHING: ClassVar["Plan"]

    @staticmethod
    def draw(dice: random.Random) -> "Plan":
        """Any plan: for the first milliseconds of a phase, or for any time within a second."""
        signals = dice.choices([[SIGKILL], [SIGTERM], [SIGINT], [SIGINT, SIGKILL]], [80, 8, 8, 4])[0]
        if dice.random() < 0.6:
            phase, occurrence = dice.choice(PHASES), dice.choice([1, 1, 2, 3])
            delay = dice.choice([0.0, _log_uniform(dice, 1e-5, 0.03)])
        else:
            phase, occurrence, delay = None, 1, _log_uniform(dice, 1e-3, 1.0)
        delays = [delay, _log_uniform(dice, 1e-4, 0.1)]
        return Plan(phase, occurrence, tuple(zip(delays, signals, strict=False)))


Plan.NOTHING = Plan(None, 1, ())


def _log_uniform(dice: random.Random, low: float, high: float) -> float:
    return low * (high / low) ** dice.random()


class Attack:
    """Carries out a plan against a process."""

    def __init__(self, plan: Plan, process: int) -> None:
        self._plan = plan
        self._process = process
        self._signals = list(plan.signals)
        self._heard = 0
        self._seen = 0
        self._due = math.inf

    def hear(self, message: Message) -> None:
        """Looks out for the plan's phase."""
        if not self._signals:
            return
        now = time.monotonic()
        if not self._heard:
            self._due = now + self._plan.patience
        self._heard += 1
        self._seen += self._plan.phase is None or message == ("phase", self._plan.phase)
        if self._seen == self._plan.occurrence:
            self._due = min(self._due, now + self._signals[0][0])
            self._seen += 1  # once

    def wait(self) -> float | None:
        """Seconds until the next signal; None if it is not known, or there is none."""
        return None if self._due == math.inf else max(0.0, self._due - time.monotonic())

    def strike(self) -> Signals:
        """Sends the next signal and returns it."""
        _, which = self._signals.pop(0)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process, which)
        self._due = time.monotonic() + self._signals[0][0] if self._signals else math.inf
        return which


def conversation(connection: Connection, attack: Attack) -> Iterator[Message]:
    """All that a process says until it ends, and among it ``("signal", which)`` where it gets one."""
    while True:
        if attack.wait() == 0:
            yield ("signal", attack.strike())
        elif connection.poll(attack.wait()):
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            attack.hear(message)
            yield message


class Undisturbed:
    """What holds after each step of a training that nothing disturbs; a process of its own works it out meanwhile."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: set[int] = set()
        self._known: dict[int, Truth] = {}

    def ask(self, number: int) -> None:
        """Says that it will be needed."""
        if number not in self._asked:
            self._asked.add(number)
            self._connection.send(number)

    def after(self, number: int) -> Truth:
        """What holds after `number` steps."""
        self.ask(number)
        while number not in self._known:
            told, truth = self._connection.recv()
            self._known[told] = truth
        return self._known[number]


@contextlib.contextmanager
def undisturbed_training(seed: int) -> Iterator[Undisturbed]:
    with started(undisturbed, seed) as (_, connection):
        yield Undisturbed(connection)
        connection.send(None)
        with contextlib.suppress(EOFError):  # once its store is closed
            while True:
                connection.recv()


@dataclass
class Tally:
    """What was done.

    Args:
        hits: signals by name and phase.
        openings: of a store.
        compared: states that were compared whole, and trained on.
        steps: of all lives.
        saved: checkpoints with a dense part that were reported complete.
        closed: stores that were closed.
        runs: trainings that came to their end.
    """

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    openings: int = 0
    compared: int = 0
    steps: int = 0
    saved: int = 0
    closed: int = 0
    runs: int = 0


class Run:
    """A training in the store at `path`.

    Each opening has to find the newest checkpoint, and each loading the newest with a dense part: the last one that was
    reported complete, or one that was begun after it.
    """

    def __init__(self, path: Path, seed: int, undisturbed: Undisturbed, tally: Tally) -> None:
        self.finished = False
        self._path = path
        self._seed = seed
        self._undisturbed = undisturbed
        self._tally = tally
        # Where the store may open, and whether rows may lack the deletions of their step there.
        self._newest = {0: False}
        self._newest_dense = {0}
        self._phase = "starting"
        self._killer: Signals | None = None
        self._leaving = False

    def live(self, plan: Plan, life: int) -> None:
        """Lets the training go on in a new process, which gets its signals by `plan` and draws its places by `life`.

        Raises:
            AssertionError: something is wrong.
        """
        self._phase, self._killer, self._leaving = "starting", None, False
        said = "nothing"
        with started(train, self._path, self._seed, life) as (process, connection):
            for message in conversation(connection, Attack(plan, process)):
                name, *values = message
                getattr(self, f"_on_{name}")(*values)
                if name != "signal":
                    said = name
                if name in ("loaded", "continued"):
                    with contextlib.suppress(OSError):  # it may be dead by now
                        connection.send("go on")
        if self._killer is not None:
            self._tally.hits[self._killer.name, self._phase] += 1
            return
        assert said in ("finished", "interrupted"), f"the process ended by itself after {said!r} while {self._phase}"
        assert not self._leaving, "an interrupted store was not closed"

    def _on_signal(self, which: Signals) -> None:
        if which == SIGINT:
            self._tally.hits[which.name, self._phase] += 1
        else:  # it had more to say
            self._killer = which

    def _on_phase(self, phase: str) -> None:
        self._phase = phase
        self._tally.steps += phase == "deleting"

    def _on_begun(self, phase: str, number: int) -> None:
        self._undisturbed.ask(number)
        self._newest[number] = self._leaving or self._newest.get(number, False)
        if phase == "saving":
            self._newest_dense.add(number)

    def _on_done(self, phase: str, number: int) -> None:
        if phase == "saving":
            self._newest = {number: False}
            self._newest_dense = {number}
            self._tally.saved += 1
            return
        self._newest = {number: self._newest[number]}
        self._tally.closed += 1
        if self._leaving:
            assert not (self._path / "live").exists(), "an interrupted store was not closed in order"
            self._leaving = False

    def _on_found(self, number: int, rows: str) -> None:
        self._tally.openings += 1
        assert number in self._newest, f"the store opened at step {number}, not at one of {sorted(self._newest)}"
        truth = self._undisturbed.after(number)
        allowed = {truth.state["rows"], *([truth.before_deletion] if self._newest[number] else [])}
        assert rows in allowed, f"the store opened with other rows than those of its step {number}"
        self._newest = {number: self._newest[number]}

    def _on_loaded(self, number: int, state: Digests) -> None:
        assert number in self._newest_dense, f"step {number} was loaded, not one of {sorted(self._newest_dense)}"
        self._newest_dense = {number}
        self._compare(number, state)

    def _on_continued(self, number: int, state: Digests) -> None:
        assert number in self._newest, f"the store opened at step {sorted(self._newest)}, but was closed at {number}"
        self._compare(number, state)

    def _compare(self, number: int, state: Digests) -> None:
        self._tally.compared += 1
        truth = self._undisturbed.after(number).state
        different = [part for part, value in truth.items() if state[part] != value]
        assert not different, f"at step {number} the {', '.join(different)} differ from an undisturbed training's"

    def _on_leaving(self) -> None:
        self._leaving = True

    def _on_failed(self, traceback: str) -> None:
        raise AssertionError(f"the process failed while {self._phase}:\n{traceback}")

    def _on_interrupted(self) -> None:
        """Nothing: what it has left is looked at where it is opened next."""

    def _on_finished(self) -> None:
        self.finished = True
