"""Several lines of states in one directory: of a run before, of another experiment, of the store itself."""

import logging
import shutil
import time
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import SmallModel, collection, update


def manager_of(directory: Path, keep: int | None = 2) -> damo.CheckpointManager:
    return damo.CheckpointManager(directory, every_steps=1, keep=keep)


def train(model: SmallModel, manager: damo.CheckpointManager, *steps: int) -> None:
    for step in steps:
        model.step()
        manager.save(model, step)
        manager.wait()


def names(manager: damo.CheckpointManager) -> list[str]:
    return [path.name for path in manager.checkpoints()]


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def old_run(tmp_path) -> Path:
    """Checkpoints of steps 10 and 11 by a store that is gone."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        train(SmallModel(store), manager_of(tmp_path / "run"), *range(12))
    shutil.rmtree(tmp_path / "store")
    return tmp_path / "run"


def test_a_new_run_neither_loses_its_checkpoints_nor_restores_those_of_an_older_one(old_run, tmp_path, caplog):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        manager = manager_of(old_run)
        assert names(manager) == ["step_10", "step_11"]
        assert manager.restore(model) is None
        train(model, manager, 3, 4, 5)
        assert names(manager) == ["step_4", "step_5"]
        assert entries(old_run) == {"step_10", "step_11", "step_4", "step_5"}
        assert manager.restore(model).step == 5
    (warning,) = warnings_in(caplog)
    assert "step_10, step_11" in warning


@pytest.mark.parametrize("by", ["name", "step", "path"])
def test_another_line_is_restored_by_name_and_left_alone_afterwards(old_run, tmp_path, by):
    with damo.EmbeddingStore(tmp_path / "new") as store:
        model = SmallModel(store)
        manager = manager_of(old_run)
        which = {"name": "step_10", "step": 10, "path": old_run / "step_10"}[by]
        assert manager.restore(model, which=which).step == 10
        assert store.step == 11
        train(model, manager, 11, 12, 13)
        assert names(manager) == ["step_12", "step_13"]
        assert entries(old_run) == {"step_10", "step_11", "step_12", "step_13"}
        assert manager.restore(model).step == 13
        with pytest.raises(ValueError, match="no checkpoint 'step_9'; it has step_12, step_13"):
            manager.restore(model, which="step_9")


def test_two_experiments_share_a_directory(tmp_path):
    """Both save the same steps, and the one began with a checkpoint of the other."""
    directory = tmp_path / "run"
    with damo.EmbeddingStore(tmp_path / "a") as a, damo.EmbeddingStore(tmp_path / "b") as b:
        one, other = SmallModel(a), SmallModel(b)
        first, second = manager_of(directory), manager_of(directory)
        train(one, first, 1)
        second.restore(other, which="step_1")
        for step in range(2, 6):
            for model, manager in ((one, first), (other, second)):
                model.step()
                manager.save(model, step)
        first.wait()
        second.wait()
        other.step()
        assert [first.restore(one).step, second.restore(other).step] == [5, 5]
        assert [a.step, b.step] == [5, 5]
        assert len(names(first)) == len(names(second)) == 2
        assert not set(names(first)) & set(names(second))
        assert entries(directory) == {*names(first), *names(second)}


def test_a_manager_leaves_another_ones_unfinished_checkpoint_alone(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = SmallModel(store)
        first = manager_of(tmp_path / "run")
        for step in range(5):
            model.step()
            first.save(model, step)
            manager_of(tmp_path / "run")
        first.wait()
        assert names(first) == ["step_3", "step_4"]


def test_training_from_an_older_state_after_a_crash_makes_the_newest(tmp_path):
    """What the store itself holds may be older than what lies in the directory."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model, manager = SmallModel(store), manager_of(tmp_path / "run")
        train(model, manager, *range(6))
        store.restore("step_0")  # as after a crash
        train(model, manager, 0, 1)
        assert names(manager) == ["step_0", "step_1"]
        assert manager.restore(model).step == 1


def test_a_clock_that_is_set_back_hides_no_checkpoint(tmp_path, monkeypatch):
    now = time.time_ns()
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model, manager = SmallModel(store), manager_of(tmp_path / "run")
        train(model, manager, 1, 2)
        monkeypatch.setattr("time.time_ns", lambda: now - 10**15)
        store.restore("step_0")
        train(model, manager, 1)
        assert names(manager) == ["step_2", "step_1.1"]
        assert manager.restore(model).step == 1


def test_checkpoints_of_ones_own_in_the_directory_are_restored_but_not_removed(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model, manager = SmallModel(store), manager_of(tmp_path / "run", keep=1)
        train(model, manager, 1)
        model.step()
        damo.save_model(model, tmp_path / "run" / "best", step=2)
        assert manager.restore(model).step == 2
        train(model, manager, 3)
        assert entries(tmp_path / "run") == {"best", "step_3"}


# ------------------------------------------------------------------ inside the store


def test_a_manager_has_the_stores_own_directory_from_the_first_day_on(tmp_path):
    options = damo.StoreOptions(keep_checkpoints=2)
    for day in range(5):
        manager = manager_of(tmp_path / "store" / "checkpoints", keep=3)
        with damo.EmbeddingStore(tmp_path / "store", options=options) as store:
            model = SmallModel(store)
            found = manager.restore(model)
            assert (found.step if found else None) == (day if day else None)
            train(model, manager, day + 1)
            model.step()  # which close() saves
    assert [damo.checkpoint_info(path).step for path in manager.checkpoints()] == [3, 4, 5]
    listed = [path for path in (tmp_path / "store" / "checkpoints").iterdir() if not (path / "model.pt").exists()]
    assert len(listed) == 2


def test_checkpoints_of_another_store_inside_a_store_are_no_states_of_it(tmp_path, caplog):
    with damo.EmbeddingStore(tmp_path / "a") as store:
        update(collection(store, "t"), {"t": [[1]]})
    with damo.EmbeddingStore(tmp_path / "b") as store:
        model = SmallModel(store)
        train(model, manager_of(tmp_path / "a" / "checkpoints"), 7, 8, 9)
    with damo.EmbeddingStore(tmp_path / "a") as store:
        assert store.step == 1
        assert [path.name for path in store.checkpoints()] == ["step_0", "step_1"]
    assert ["step_8, step_9" in warning for warning in warnings_in(caplog)] == [False, True]  # the first is b's
    assert damo.checkpoint_info(tmp_path / "a").store_step == 1
    with damo.EmbeddingStore(tmp_path / "a", restore="step_9") as store:
        assert store.step == 3


# ------------------------------------------------------------------ a model's tables, and others


class OneTable(torch.nn.Module):
    def __init__(self, store: damo.EmbeddingStore, name: str) -> None:
        super().__init__()
        self.name = name
        self.ebc = collection(store, name, initial=0.0)

    def step(self, *ids: int) -> None:
        update(self.ebc, {self.name: [[i] for i in ids]})


@pytest.fixture
def two_models(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        yield store, OneTable(store, "a"), OneTable(store, "b")


def change_by_training(store, other):
    other.step(1, 2)


def change_by_setting(store, other):
    store.table("b").set([1], torch.ones(1, 4))


def change_by_deleting(store, other):
    store.table("b").delete([1])


@pytest.mark.parametrize("change", [change_by_training, change_by_setting, change_by_deleting])
def test_a_load_replaces_no_other_models_rows_unless_asked_to(two_models, tmp_path, change):
    store, a, b = two_models
    a.step(1)
    b.step(1)
    damo.save_model(a, tmp_path / "A")
    before = store.table("b").get([1, 2])
    change(store, b)
    now = store.table("b").get([1, 2])
    assert not torch.equal(before, now)
    a.step(2)
    with pytest.raises(ValueError, match=r"other tables than the model's, \['b'\].* whole_store=True"):
        damo.load_model(tmp_path / "A", a)
    assert torch.equal(store.table("b").get([1, 2]), now)
    assert len(store.table("a")) == 2
    damo.load_model(tmp_path / "A", a, whole_store=True)
    assert torch.equal(store.table("b").get([1, 2]), before)
    assert len(store.table("a")) == 1


def test_a_load_removes_no_tables_unless_asked_to(two_models, tmp_path):
    store, a, b = two_models
    a.step(1)
    manager = manager_of(tmp_path / "run")
    train_a = damo.save_model(a, tmp_path / "run" / "step_1")
    b.step(1)
    with pytest.raises(ValueError, match=r"\['b'\]"):
        damo.load_model(train_a, a)
    with pytest.raises(ValueError, match=r"\['b'\]"):
        manager.restore(a)
    assert len(store.table("b")) == 1
    manager.restore(a, whole_store=True)
    assert len(store.table("b")) == 0


def test_other_tables_that_did_not_change_are_in_nobodys_way(two_models, tmp_path):
    """Nor are those that the store does not have: they are added."""
    store, a, b = two_models
    b.step(1)
    a.step(1)
    damo.save_model(a, tmp_path / "A")
    a.step(2)
    damo.load_model(tmp_path / "A", a)
    assert (len(store.table("a")), len(store.table("b"))) == (1, 1)
    with damo.EmbeddingStore(tmp_path / "other") as other:
        damo.load_model(tmp_path / "A", OneTable(other, "a"))
        OneTable(other, "b")
        assert (len(other.table("a")), len(other.table("b"))) == (1, 1)


def test_a_table_that_nobody_has_opened_is_another_one_as_well(two_models, tmp_path):
    store, a, b = two_models
    a.step(1)
    damo.save_model(a, tmp_path / "A")
    b.step(1)
    store.close()
    with damo.EmbeddingStore(tmp_path / "store") as store:
        a = OneTable(store, "a")
        a.step(2)
        with pytest.raises(ValueError, match=r"\['b'\]"):
            damo.load_model(tmp_path / "A", a)
        assert len(store.table("a")) == 2
