"""A store's own checkpoints are bounded, and what a user named is never removed."""

import logging
import runpy
import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import Delta
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from delta_model import Model, applied
from mixed_run import SmallModel, collection, rows_of, update
from support import small_store

GOLDEN = Path(__file__).parents[1] / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))


def names(store: damo.EmbeddingStore) -> list[str]:
    return [path.name for path in store.checkpoints()]


def day(path: Path, **options: object) -> list[str]:
    with small_store(path, **options) as store:
        update(collection(store, "t"), {"t": [[1]]})
    with small_store(path, **options) as store:
        return names(store)


def test_a_close_a_day_does_not_add_up(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        for _ in range(12):
            found = day(tmp_path / "store")
    assert found == [f"step_{n}" for n in range(6, 13)]
    assert "checkpoints/step_0: the newest 7 of EmbeddingStore's stay" in caplog.text


@pytest.mark.parametrize(("keep", "stay"), [(1, ["step_3"]), (2, ["step_2", "step_3"]), (None, 4)])
def test_how_many_stay_is_an_option(tmp_path, keep, stay):
    for _ in range(3):
        found = day(tmp_path / "store", keep_checkpoints=keep)
    assert found == stay or len(found) == stay


@pytest.mark.parametrize("background", [False, True])
def test_a_checkpoint_of_the_model_outlives_those_of_rows(tmp_path, background):
    with small_store(tmp_path / "store", keep_checkpoints=2) as store:
        model = SmallModel(store)
        model.step()
        saved = damo.save_model_async(model).result() if background else damo.save_model(model)
        for _ in range(4):
            model.step()
            written = store.checkpoint_async().result() if background else store.checkpoint()
            assert written.is_dir()
        assert names(store) == ["step_1", "step_4", "step_5"]
        damo.load_model(store.path, model)
        assert damo.checkpoint_info(saved).store_step == store.step == 1


def test_prune_on_request(tmp_path):
    with small_store(tmp_path / "store", keep_checkpoints=None) as store:
        ebc = collection(store, "t")
        for _ in range(4):
            update(ebc, {"t": [[1]]})
            store.checkpoint()
        named = [store.checkpoint(path) for path in (store.path / "checkpoints" / "mine", tmp_path / "outside")]
        assert [path.name for path in store.prune(2)] == ["step_0", "step_1", "step_2"]
        assert names(store) == ["step_3", "step_4", "mine"]
        assert all(path.is_dir() for path in named)
        assert store.prune(keep=2) == []
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="keep must be positive"):
                store.prune(wrong)
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        collection(store, "t")
        assert store.step == 4
    with damo.EmbeddingStore(tmp_path / "store", read_only=True) as store, pytest.raises(ValueError, match="read-only"):
        store.prune(1)


def test_a_store_that_went_back_keeps_what_it_made_last(tmp_path):
    with small_store(tmp_path / "store", keep_checkpoints=2) as store:
        ebc = collection(store, "t")
        for _ in range(3):
            update(ebc, {"t": [[1]]})
            store.checkpoint()
        store.restore("step_2")
        update(ebc, {"t": [[2]]})
        made = store.checkpoint()
        assert names(store) == ["step_3", made.name]
        expected = rows_of(store)
    with small_store(tmp_path / "store") as store:
        collection(store, "t")
        assert rows_of(store) == expected


def test_what_a_read_only_store_reads_stays(tmp_path):
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        ebc = collection(store, "t")
        update(ebc, {"t": [[1]]})
        read = store.checkpoint()
        with damo.EmbeddingStore(store.path, read_only=True) as reader:
            collection(reader, "t")
            for _ in range(3):
                update(ebc, {"t": [[1]]})
                store.checkpoint()
            assert names(store) == [read.name, "step_4"]
            assert reader.step == 1
        update(ebc, {"t": [[1]]})
        store.checkpoint()
        assert names(store) == ["step_5"]


def test_a_delta_begins_from_a_checkpoint_that_has_been_removed(tmp_path):
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        model = Model(store)
        model.train("a", [1, 2])
        base = store.checkpoint()
        before = model.rows()
        for _ in range(3):
            model.train("a", [2, 3])
            store.checkpoint()
        assert not base.exists()
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=1))
        assert applied(before, delta) == model.rows()


def test_a_new_checkpoint_does_not_take_the_name_of_one_that_was_removed(tmp_path):
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        collection(store, "t")
        made = []
        for i in range(4):  # all of step 0
            store.table("t").set([i], torch.ones(1, 4))
            made.append(store.checkpoint())
        assert [path.name for path in made] == ["step_0.1", "step_0.2", "step_0.3", "step_0.4"]
        assert names(store) == ["step_0.4"]


def test_a_disk_that_refuses_a_removal_refuses_no_checkpoint(tmp_path, monkeypatch, caplog):
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        ebc = collection(store, "t")
        with monkeypatch.context() as patched:
            patched.setattr("damo_torchrec.checkpoints.retention.remove_directory", _raise_damo_error)
            update(ebc, {"t": [[1]]})
            made = store.checkpoint()
        assert "stays until the next" in caplog.text
        assert names(store) == ["step_0", made.name]
        update(ebc, {"t": [[1]]})
        store.checkpoint()
        assert names(store) == ["step_2"]


def _raise_damo_error(*_: object) -> None:
    raise damo.DamoError("no")


@pytest.mark.parametrize(("keep", "error"), [(0, ValueError), (-2, ValueError), (True, ValueError), (1.5, TypeError)])
def test_a_wrong_number_is_refused(keep, error):
    with pytest.raises(error, match="keep_checkpoints must be an int"):
        damo.StoreOptions(keep_checkpoints=keep)


def test_a_store_of_an_earlier_release_goes_on(tmp_path):
    """Its checkpoints do not say of which line they are; they are the store's, and stay."""
    (tmp_path / "store" / "checkpoints").mkdir(parents=True)
    shutil.copytree(GOLDEN / "format_3", tmp_path / "store" / "checkpoints" / "step_3")
    for expected in (["step_3", "step_4"], ["step_3", "step_5"]):
        with damo.EmbeddingStore(tmp_path / "store", options=damo.StoreOptions(keep_checkpoints=1)) as store:
            make["one_more_step"](make["make_model"](store, 3))
            store.checkpoint()
            assert names(store) == expected


def test_a_reader_that_a_removal_overtakes_takes_the_next_checkpoint(tmp_path, monkeypatch):
    find, removals = CheckpointLine.find, [1, 2, 3]
    with small_store(tmp_path / "store", keep_checkpoints=1) as store:
        ebc = collection(store, "t")

        def overtaken(line, which):
            found = find(line, which)
            if removals:
                removals.pop()
                update(ebc, {"t": [[1]]})
                store.checkpoint()
                assert not found.exists()
            return found

        monkeypatch.setattr(CheckpointLine, "find", overtaken)
        with damo.EmbeddingStore(store.path, read_only=True) as reader:
            assert reader.step == store.step == 3
        removals += range(100)
        with pytest.raises(ValueError, match="has been removed: there are newer checkpoints"):
            damo.EmbeddingStore(store.path, read_only=True)
