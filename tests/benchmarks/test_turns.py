"""Contestants in processes of their own, and the order of their turns.

Those processes import this file: it imports no torch.
"""

import os
import signal
from functools import partial

import pytest

from common.turns import Contestant, ContestantError, Turn, take_turns


class Recorder:
    """A trainee that notes what it is asked for."""

    def __init__(self):
        self.steps = []

    def batch(self, number):
        return number

    def step(self, batch):
        self.steps.append(batch)
        if batch == int(os.environ.get("FAIL_AT", "-1")):
            raise ValueError("no such batch")
        if batch == int(os.environ.get("DIE_AT", "-1")):
            os.kill(os.getpid(), signal.SIGKILL)

    def last(self, number):
        if number > len(self.steps):
            raise ValueError(f"{len(self.steps)} steps are fewer than {number}")
        return self.steps[-number:]


def failing_build():
    raise ValueError("cannot be built")


def test_a_turn_times_its_steps_but_the_first():
    with Contestant("recorder", Recorder, {}) as contestant:
        contestant.wait()
        first, second = contestant.run(3), contestant.run(2)
    assert len(first.seconds) == 3
    assert len(second.seconds) == 2
    assert first.resident_bytes > 0


def test_a_turn_tells_when_its_steps_began():
    with Contestant("recorder", Recorder, {}) as contestant:
        contestant.wait()
        turn = contestant.run(3)
    assert turn.starts[0] == 0
    assert len(turn.starts) == 3
    assert all(turn.starts[i] + turn.seconds[i] <= turn.starts[i + 1] for i in range(2))


def test_a_contestant_answers_between_turns():
    with Contestant("recorder", Recorder, {}) as contestant:
        contestant.wait()
        contestant.run(3)
        assert contestant.call("last", 2) == [2, 3]
        with pytest.raises(ContestantError, match=r"(?s)recorder: .*4 steps are fewer than 9"):
            contestant.call("last", 9)


def test_a_contestant_is_stopped_between_turns():
    with Contestant("recorder", Recorder, {}) as contestant:
        contestant.wait()
        stopped = os.waitid(os.P_PID, contestant._process.pid, os.WSTOPPED | os.WNOWAIT)
    assert stopped.si_status == signal.SIGSTOP


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAIL_AT": "1"}, "no such batch"),
        ({"DIE_AT": "1"}, "exit code -9, as when memory runs out"),
    ],
)
def test_a_failure_in_a_turn_names_the_contestant(environment, message):
    with Contestant("recorder", Recorder, environment) as contestant:
        contestant.wait()
        with pytest.raises(ContestantError, match=f"(?s)recorder: .*{message}"):
            contestant.run(3)


def test_a_contestant_that_was_killed_between_turns_is_named():
    with Contestant("recorder", Recorder, {}) as contestant:
        contestant.wait()
        os.kill(contestant._process.pid, signal.SIGKILL)
        contestant._process.join()
        with pytest.raises(ContestantError, match=r"recorder: .*exit code -9"):
            contestant.run(3)


def test_a_failure_to_build_names_the_contestant():
    with (
        Contestant("broken", failing_build, {}) as contestant,
        pytest.raises(ContestantError, match=r"(?s)broken: .*cannot be built"),
    ):
        contestant.wait()


def test_rounds_begin_with_another_contestant_each_time():
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def run(self, steps):
            order.append(self.name)
            return Turn([float(ord(self.name))] * steps, 0, 0)

    turns = take_turns([Fake("a"), Fake("b"), Fake("c")], rounds=3, steps=2, on_round=partial(order.append, "|"))
    assert "".join(order) == "abc|bca|cab|"
    assert [[turn.seconds for turn in mine] for mine in turns] == [[[float(ord(name))] * 2] * 3 for name in "abc"]
