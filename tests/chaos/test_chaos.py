"""Training that is killed at random instants loses nothing; and where something is lost, the harness notices.

`make chaos` does the same for hours.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
import torch

import damo_torchrec as damo
from chaos.model import STEPS, Model
from chaos.program import chaos, in_words
from chaos.run import Plan, Run, Tally, undisturbed_training
from chaos.training import load_newest, with_dense_part
from processes import run
from support import small_store

SIGNALS = 60
IN_THE_THIRD_SAVING = Plan("saving", 3, ((0.0, SIGKILL),), patience=math.inf)


@pytest.mark.slow
def test_killed_at_random_instants_nothing_is_lost_or_mixed(tmp_path):
    tally = chaos(tmp_path / "runs", 0, lambda tally: tally.hits.total() >= SIGNALS)
    assert tally.hits.total() >= SIGNALS
    assert len({phase for _, phase in tally.hits}) >= 5, in_words(tally)
    assert tally.compared > tally.hits.total() / 2
    assert tally.steps >= STEPS * tally.runs > 0
    assert not list((tmp_path / "runs").iterdir())


# ------------------------------------------------------------------ what is wrong is noticed


@contextlib.contextmanager
def a_run(path: Path) -> Iterator[Run]:
    with undisturbed_training(0) as undisturbed:
        yield Run(path, 0, undisturbed, Tally())


def lose_the_newest_checkpoint(path: Path) -> None:
    checkpoints = sorted(path.glob("checkpoints/step_*"), key=lambda step: int(step.name.removeprefix("step_")))
    shutil.rmtree(checkpoints[-1])


def lose_a_row(path: Path) -> None:
    with small_store(path) as store:
        Model(store, 0)
        ids, _ = next(store.table("shop").items(1))
        store.table("shop").delete(ids)


def mix_dense_parts(path: Path) -> None:
    with small_store(path) as store:
        model = Model(store, 0)
        load_newest(model)
        old = torch.load(with_dense_part(store)[0] / "model.pt", weights_only=True)["model"]
        model.load_state_dict(old, strict=False)
        damo.save_model(model, optimizer=model.optimizer, extra={"losses": model.losses})


@pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (lose_the_newest_checkpoint, r"the store opened at step \d+, not at one of \[\d+"),
        (lose_a_row, r"the store opened with other rows than those of its step \d+"),
        (mix_dense_parts, r"at step \d+ the dense weights differ"),
    ],
)
@pytest.mark.slow
def test_what_a_checkpoint_lacks_is_noticed(tmp_path, tamper: Callable[[Path], None], what):
    path = tmp_path / "store"
    with a_run(path) as training:
        training.live(IN_THE_THIRD_SAVING, 0)
        run(tamper, path)
        with pytest.raises(AssertionError, match=what):
            training.live(Plan.NOTHING, 1)


def end_early(*_: object) -> None:
    """Stands for a training that ends without a word."""


def test_a_process_that_ends_by_itself_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("chaos.run.train", end_early)
    with a_run(tmp_path / "store") as training, pytest.raises(AssertionError, match="the process ended by itself"):
        training.live(Plan.NOTHING, 0)


def test_a_process_that_fails_is_noticed(tmp_path):
    path = tmp_path / "no store"
    path.mkdir()
    (path / "file").touch()
    with a_run(path) as training, pytest.raises(AssertionError, match=r"(?s)failed while opening.*neither empty nor a"):
        training.live(Plan.NOTHING, 0)
