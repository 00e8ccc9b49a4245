"""`CheckpointManager`: checkpoints every so often, of which a few are kept."""

import shutil

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints import temporary_directory
from mixed_run import SmallModel
from processes import kill_this_process, run_until_killed


@pytest.fixture
def model(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        yield SmallModel(store)


def names(manager):
    return [path.name for path in manager.checkpoints()]


def train(model, manager, steps):
    begun = []
    for step in steps:
        model.step()
        if manager.step(model, step, optimizer=model.optimizer, extra={"position": step * 10}):
            begun.append(step)
            manager.wait()  # else it depends on the disk whether the next one is due in time
    return begun


def test_every_so_many_steps_and_the_newest_are_kept(model, tmp_path):
    manager = damo.CheckpointManager(tmp_path / "run", every_steps=3, keep=2)
    assert manager.directory == tmp_path / "run"
    assert manager.restore(model, optimizer=model.optimizer) is None
    assert train(model, manager, range(1, 13)) == [3, 6, 9, 12]
    assert names(manager) == ["step_9", "step_12"]
    expected = model.state()
    train(model, manager, range(13, 15))
    found = manager.restore(model, optimizer=model.optimizer)
    assert (found.step, found.extra) == (12, {"position": 120})
    assert model.state() == expected
    assert model.ebc.store.step == 12


def test_a_checkpoint_does_not_wait_for_the_one_before(model, tmp_path, monkeypatch):
    """While one is being written none begins, and the loop goes on."""
    with damo.CheckpointManager(tmp_path / "run", every_steps=1) as manager:
        for step in range(20):
            model.step()
            manager.step(model, step)
    found = names(manager)
    assert found[0] == "step_0"
    assert len(set(found)) == len(found)


def test_by_time(model, tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    manager = damo.CheckpointManager(tmp_path / "run", every_seconds=60, every_steps=1000)
    for step, seconds in enumerate([10, 40, 9, 2, 30, 31, 59]):
        now += seconds
        model.step()
        manager.step(model, step)
        manager.wait()
    assert names(manager) == ["step_3", "step_5"]


def test_a_step_that_is_trained_again_gets_a_name_of_its_own(model, tmp_path):
    with damo.CheckpointManager(tmp_path / "run", every_steps=1) as manager:
        for _ in range(3):
            model.step()
            manager.save(model, 7)
    assert names(manager) == ["step_7", "step_7.1", "step_7.2"]


def test_what_cannot_be_written_is_raised_by_a_later_call_and_tried_again(model, tmp_path):
    manager = damo.CheckpointManager(tmp_path / "run", every_steps=1, keep=1)
    train(model, manager, [1])
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("no directory")
    with pytest.raises(ValueError, match="not a directory"):
        manager.step(model, 2)
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    assert train(model, manager, [3]) == [3]
    assert names(manager) == ["step_3"]


def test_a_damaged_checkpoint_is_neither_loaded_past_nor_removed(model, tmp_path):
    manager = damo.CheckpointManager(tmp_path / "run", every_steps=1, keep=2)
    train(model, manager, [1, 2])
    (tmp_path / "run" / "step_2" / "manifest.json").write_text("{")
    with pytest.raises(damo.CorruptionError, match=r"step_2.*move .* away"):
        manager.restore(model)
    train(model, manager, [3, 4, 5])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_2", "step_4", "step_5"]


def die_while_one_is_removed(path):
    store = damo.EmbeddingStore(path / "store")
    model = SmallModel(store)
    manager = damo.CheckpointManager(path / "run", every_steps=1, keep=1)
    train(model, manager, [1])
    temporary_directory.shutil.rmtree = kill_this_process
    train(model, manager, [2])


def test_killed_while_one_is_removed_the_others_are_whole(tmp_path):
    run_until_killed(die_while_one_is_removed, tmp_path)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".step_1.0.damo-removed", "step_2"]
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        manager = damo.CheckpointManager(tmp_path / "run", every_steps=1, keep=1)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step_2"]
        assert manager.restore(model, optimizer=model.optimizer).step == 2


def test_an_error_in_the_loop_is_what_comes_out(model, tmp_path):
    manager = damo.CheckpointManager(tmp_path / "run", every_steps=1)

    def loop():
        with manager:
            model.step()
            manager.step(model, 0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop()
    assert names(manager) == ["step_0"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "needs every_steps, every_seconds or both"),
        ({"every_steps": 0}, "every_steps must be positive, got 0"),
        ({"every_seconds": -1.0}, "every_seconds must be positive, got -1"),
        ({"every_seconds": float("nan")}, "every_seconds must be positive, got nan"),
        ({"every_steps": 5, "keep": 0}, "keep must be positive, got 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        damo.CheckpointManager(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_schedulers_go_on(model, tmp_path):
    def scheduler():
        return torch.optim.lr_scheduler.StepLR(model.optimizer, 2, 0.5)

    ours = scheduler()
    with damo.CheckpointManager(tmp_path / "run", every_steps=3) as manager:
        for step in range(1, 4):
            model.step()
            ours.step()
            manager.step(model, step, optimizer=model.optimizer, schedulers=[ours])
    expected = [ours.step() or ours.get_last_lr() for _ in range(4)]
    resumed = scheduler()
    manager.restore(model, optimizer=model.optimizer, schedulers=[resumed])
    assert [resumed.step() or resumed.get_last_lr() for _ in range(4)] == expected
    with pytest.raises(ValueError, match="saved with 1 schedulers, got 2"):
        manager.restore(model, schedulers=[resumed, resumed])
