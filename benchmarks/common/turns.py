"""Programs that are timed in turns, each in a process of its own.

A process of its own lets every contestant have its own environment, which OpenMP reads when torch is imported. Between
its turns a process is stopped, so that neither threads that spin nor background work take time from the others.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from unittest import mock

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Trainee(Protocol):
    """What is timed."""

    def batch(self, number: int) -> Any:
        """The input of step `number`. Not timed."""

    def step(self, batch: Any) -> None:
        """What is timed."""


@dataclass(frozen=True)
class Turn:
    """What a turn took.

    Args:
        seconds: of each step, by the wall clock.
        page_faults: of its steps together, those that the system served with memory alone.
        resident_bytes: of the process at its end.
        starts: when each step began, in seconds since the first one did.
    """

    seconds: list[float]
    page_faults: int
    resident_bytes: int
    starts: list[float] = field(default_factory=list)


class ContestantError(RuntimeError):
    """A contestant's process failed."""


class Contestant:
    """A `Trainee` in a process of its own. A context manager: leaving it ends the process.

    Args:
        name: for messages.
        build: makes the trainee, in the new process. Picklable; errors of it and of the trainee come out of `wait`,
            `run` and `call` as ContestantError.
        environment: variables that the process has besides those of this one, before it imports anything.
    """

    def __init__(self, name: str, build: Callable[[], Trainee], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, build), name=name, daemon=True)
        with mock.patch.dict(os.environ, environment):
            self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until the trainee is built."""
        self._receive()

    def run(self, steps: int) -> Turn:
        """Times `steps` steps, after one that warms up the caches that others have emptied."""
        turn: Turn = self._ask(steps)
        return turn

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the trainee, between two turns, and returns what it returns."""
        return self._ask((method, arguments))

    def _ask(self, request: Any) -> Any:
        self._signal(signal.SIGCONT)
        with suppress(ConnectionError):  # _receive tells why the process has ended
            self._connection.send(request)
        return self._receive()

    def _receive(self) -> Any:
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            hint = ", as when memory runs out" if code == -signal.SIGKILL else ""
            raise ContestantError(f"{self.name}: its process ended with exit code {code}{hint}") from None
        if isinstance(reply, ContestantError):
            raise ContestantError(f"{self.name}: {reply}")
        self._signal(signal.SIGSTOP)
        return reply

    def _signal(self, number: int) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()  # which ends stopped processes too
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, build: Callable[[], Trainee]) -> None:
    """The new process: builds the trainee, then takes turns until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other process's business
    # However that one ends, no stopped process full of tables is left behind.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        trainee = build()
        connection.send(None)
        done = 0
        while True:
            request = connection.recv()
            if isinstance(request, tuple):
                method, arguments = request
                connection.send(getattr(trainee, method)(*arguments))
                continue
            trainee.step(trainee.batch(done))
            connection.send(_turn(trainee, range(done + 1, done + 1 + request)))
            done += 1 + request
    except EOFError:
        return
    except Exception:
        connection.send(ContestantError(traceback.format_exc()))


def _turn(trainee: Trainee, numbers: Iterable[int]) -> Turn:
    seconds, starts = [], []
    page_faults = 0
    for number in numbers:
        batch = trainee.batch(number)
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = time.perf_counter()
        trainee.step(batch)
        seconds.append(time.perf_counter() - start)
        starts.append(start)
        page_faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Turn(seconds, page_faults, resident_pages * resource.getpagesize(), [start - starts[0] for start in starts])


def take_turns(
    contestants: list[Contestant], rounds: int, steps: int, on_round: Callable[[], object] = lambda: None
) -> list[list[Turn]]:
    """By contestant: its turns of `steps` steps, one in each round. Each round begins with another contestant."""
    turns: list[list[Turn]] = [[] for _ in contestants]
    for number in range(rounds):
        for position in range(len(contestants)):
            which = (number + position) % len(contestants)
            turns[which].append(contestants[which].run(steps))
        on_round()
    return turns
