"""Promise 5: the dense and the sparse part of a checkpoint are of one step, or it is refused."""

import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from kills import PLACES
from mixed_run import SmallModel
from processes import kill_this_process, run_until_killed
from support import A_HANDFUL_OF_ROWS


def states_after(steps: int) -> list[list[object]]:
    """Of an undisturbed run, after 0, 1, ... steps."""
    with damo.EmbeddingStore(options=damo.StoreOptions(backend="memory")) as store:
        model = SmallModel(store)
        states = [model.state()]
        for _ in range(steps):
            model.step()
            states.append(model.state())
        return states


def die_in_save_model(path: Path, place: str) -> None:
    store = damo.EmbeddingStore(path, options=damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS))
    model = SmallModel(store)
    model.step()
    damo.save_model(model, optimizer=model.optimizer)
    model.step()
    if place == "within the dense part":
        torch.save = kill_this_process
    else:
        PLACES[place][0]()
    damo.save_model(model, optimizer=model.optimizer)


@pytest.mark.parametrize("place", [*PLACES, "within the dense part"])
def test_promise_5_killed_in_save_model_dense_and_sparse_parts_are_of_one_step(tmp_path, place):
    run_until_killed(die_in_save_model, tmp_path / "store", place)
    complete = place in PLACES and PLACES[place][1]
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        damo.load_model(store.checkpoints()[-1], model, optimizer=model.optimizer)
        assert model.state() == states_after(2)[2 if complete else 1]


@pytest.fixture
def two_checkpoints(tmp_path) -> tuple[Path, Path]:
    with damo.EmbeddingStore(tmp_path / "trained") as store:
        model = SmallModel(store)
        paths = []
        for name in ("first", "second"):
            model.step()
            paths.append(damo.save_model(model, tmp_path / name, optimizer=model.optimizer))
    return paths[0], paths[1]


def replace(target: Path, source: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


@pytest.mark.parametrize("part", ["model.pt", "manifest.json", "rows"])
def test_promise_5_parts_of_different_steps_are_refused(two_checkpoints, tmp_path, part):
    first, second = two_checkpoints
    replace(first / part, second / part)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        before = model.state()
        with pytest.raises(damo.CorruptionError, match="another checkpoint"):
            damo.load_model(first, model, optimizer=model.optimizer)
        assert model.state() == before
        damo.load_model(second, model, optimizer=model.optimizer)
        assert model.state() == states_after(2)[2]
