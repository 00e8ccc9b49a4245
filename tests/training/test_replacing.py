"""`save_model` again to the path of a model that it saved before."""

import os
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints import atomic_directory
from damo_torchrec.checkpoints.manifest import Manifest
from kills import then_die
from mixed_run import SmallModel
from processes import kill_this_process, run_until_killed


@pytest.fixture
def model(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        yield SmallModel(store)


def refuse(*_):
    raise OSError("no space for it")


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("wait", [False, True], ids=["save_model", "save_model_async"])
def test_what_it_saved_before_is_replaced(model, tmp_path, wait):
    (tmp_path / "saved").mkdir()  # an empty directory will do
    for step in range(1, 4):
        model.step()
        if wait:
            assert damo.save_model_async(model, tmp_path / "saved").result() == tmp_path / "saved"
        else:
            assert damo.save_model(model, tmp_path / "saved") == tmp_path / "saved"
        assert damo.checkpoint_info(tmp_path / "saved").step == step
        assert names(tmp_path) == ["saved", "store"]
    Manifest.read(tmp_path / "saved").check_files(tmp_path / "saved")


def test_the_store_goes_back_to_what_replaced_it(model, tmp_path):
    for _ in range(2):
        model.step()
        damo.save_model(model, tmp_path / "saved")
    weight = model.dense.weight.detach().clone()
    model.step()
    damo.load_model(tmp_path / "saved", model)
    assert torch.equal(model.dense.weight.detach(), weight)


def test_what_the_disk_refuses_leaves_the_one_before(model, tmp_path, monkeypatch):
    model.step()
    damo.save_model(model, tmp_path / "saved")
    model.step()
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", refuse)
        with pytest.raises(damo.DamoError, match="no space for it"):
            damo.save_model(model, tmp_path / "saved")
    assert damo.checkpoint_info(tmp_path / "saved").step == 1
    assert names(tmp_path) == ["saved", "store"]


@pytest.mark.parametrize(
    "make",
    [
        lambda path, model: path.write_text("a file"),
        lambda path, model: (path.mkdir(), (path / "notes.txt").touch()),
        lambda path, model: model.ebc.store.checkpoint(path),
        lambda path, model: os.symlink(damo.save_model(model, path.with_name("real")), path),
    ],
    ids=["a file", "a directory of somebody's", "a checkpoint of rows alone", "a symbolic link"],
)
def test_what_it_has_not_saved_stays(model, tmp_path, make):
    model.step()
    path: Path = tmp_path / "saved"
    make(path, model)
    before = path.lstat()
    with pytest.raises(ValueError, match="saved exists already: a checkpoint needs a new directory"):
        damo.save_model(model, path)
    assert path.lstat() == before


def test_what_a_manager_or_the_store_keeps_stays(model, tmp_path):
    model.step()
    kept = damo.save_model(model)
    model.step()
    with pytest.raises(ValueError, match="exists already"):
        damo.save_model(model, kept)
    assert damo.checkpoint_info(kept).step == 1


def test_models_of_other_stores_damaged_ones_and_those_in_use_stay(model, tmp_path):
    model.step()
    path = damo.save_model(model, tmp_path / "saved")
    with (
        damo.EmbeddingStore(path, read_only=True),
        pytest.raises(ValueError, match="a read-only store is open over it"),
    ):
        damo.save_model(model, path)
    with (
        damo.EmbeddingStore(tmp_path / "other", memory_budget="64MiB") as other,
        pytest.raises(ValueError, match="exists already, and is a model of another store"),
    ):
        damo.save_model(SmallModel(other), path)
    (path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="exists already, and is not replaced, as it is damaged"):
        damo.save_model(model, path)


def die_at_exchange(exchanged):
    exchange = atomic_directory.exchange
    atomic_directory.exchange = then_die(exchange) if exchanged else kill_this_process


def save_and_die(directory, exchanged):
    with damo.EmbeddingStore(directory / "store", memory_budget="64MiB") as store:
        model = SmallModel(store)
        model.step()
        damo.save_model(model, directory / "saved")
        model.step()
        die_at_exchange(exchanged)
        damo.save_model(model, directory / "saved")


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_kill_leaves_the_one_before_or_the_new_one(tmp_path, exchanged):
    run_until_killed(save_and_die, tmp_path, exchanged)
    Manifest.read(tmp_path / "saved").check_files(tmp_path / "saved")
    assert damo.checkpoint_info(tmp_path / "saved").step == (2 if exchanged else 1)
