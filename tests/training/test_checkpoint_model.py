"""Two runs that share a directory of checkpoints have, after any calls, what a plain model of lines of states has."""

import random
import shutil
from pathlib import Path

import pytest

import damo_torchrec as damo
from line_model import RunModel, Shelf
from mixed_run import collection, update
from support import directory_in_memory, small_store, weekly

KEEP, KEEP_INSIDE = 2, 3
CALLS = 25


class Run:
    """The real thing: a store, a model and a manager."""

    def __init__(self, path: Path, shared: Path) -> None:
        self._path, self._shared = path, shared
        self.open()

    def open(self) -> None:
        self.store = small_store(self._path, num_threads=1, keep_checkpoints=KEEP_INSIDE)
        self.model = collection(self.store, "t", initial=0.0)
        self.manager = damo.CheckpointManager(self._shared, every_steps=1, keep=KEEP)

    def crash(self) -> None:
        self.store.session.give_up_rows()
        self.open()

    def begin_anew(self) -> None:
        self.store.close()
        shutil.rmtree(self._path)
        self.open()

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def ids(self) -> frozenset[int]:
        return frozenset(self.store.table("t").to_torch()[0].tolist())


class Both:
    """A run and its model, which do the same."""

    def __init__(self, run: Run, model: RunModel, dice: random.Random) -> None:
        self.run, self.model, self._dice = run, model, dice

    def check(self) -> None:
        assert self.run.ids() == self.model.state
        assert self.run.store.step == len(self.model.state)
        assert [path.name for path in self.run.store.checkpoints()] == self.model.inside.names(self.model.line)

    def train(self, i: int) -> None:
        update(self.run.model, {"t": [[i]]})
        self.model.train(i)

    def save(self, i: int) -> None:
        step = self._dice.randrange(3)
        self.run.manager.save(self.run.model, step, extra={"call": i})
        if self._dice.random() < 0.5:
            update(self.run.model, {"t": [[i]]})  # meanwhile
            self.model.save(step)
            self.model.train(i)
        else:
            self.model.save(step)
        self.run.manager.wait()

    def restore_newest(self, _: int) -> None:
        found, expected = self.run.manager.restore(self.run.model), self.model.newest()
        assert (found.path.name if found else None) == expected
        if expected is not None:
            self.model.restore(expected)

    def restore_by_name(self, _: int) -> None:
        made = self.model.shared_names()
        if made:
            name = self._dice.choice(made)
            assert self.run.manager.restore(self.run.model, which=name).path.name == name
            self.model.restore(name)

    def checkpoint(self, _: int) -> None:
        self.run.store.checkpoint()
        self.model.checkpoint()

    def prune(self, _: int) -> None:
        keep = self._dice.randrange(1, 4)
        self.run.store.prune(keep)
        self.model.prune(keep)

    def crash(self, _: int) -> None:
        self.run.crash()
        self.model.crash()

    def reopen(self, _: int) -> None:
        self.run.reopen()
        self.model.checkpoint()
        self.model.crash()

    def begin_anew(self, _: int) -> None:
        self.run.begin_anew()
        self.model.begin_anew()


CALLS_AND_WEIGHTS = {
    Both.train: 8,
    Both.save: 6,
    Both.restore_newest: 3,
    Both.restore_by_name: 2,
    Both.checkpoint: 3,
    Both.prune: 1,
    Both.crash: 2,
    Both.reopen: 1,
    Both.begin_anew: 1,
}


@pytest.mark.parametrize("seed", [*range(24), *weekly(range(24, 200))])
def test_two_runs_with_one_directory_do_what_a_model_of_lines_does(seed, monkeypatch):
    dice = random.Random(seed)
    shelf = Shelf()
    clock = random.Random(seed)
    monkeypatch.setattr("time.time_ns", lambda: clock.randrange(10**18))  # set back and forth between any two calls
    with directory_in_memory() as where:
        shared = where / "run"
        runs = [Both(Run(where / f"store_{i}", shared), RunModel(shelf, KEEP, KEEP_INSIDE), dice) for i in range(2)]
        for i in range(CALLS):
            both = dice.choice(runs)
            (call,) = dice.choices([*CALLS_AND_WEIGHTS], [*CALLS_AND_WEIGHTS.values()])
            call(both, i)
            both.check()
            assert {path.name for path in shared.iterdir()} == shelf.made.keys()
        for both in runs:
            both.run.store.close()
