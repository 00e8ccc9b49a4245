"""A store's checkpoints, and going back to them."""

import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import assert_same_rows, collection, look_up, rows_of, update


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.fixture
def trained(path):
    """Ids 1, 2 and 3 came one step after the other, each with its checkpoint."""
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t", initial=0.0)
        for i in (1, 2, 3):
            update(ebc, {"t": [[i]]})
            store.checkpoint()
        yield store


def test_checkpoints_are_listed_oldest_first(path):
    with damo.EmbeddingStore(path, options=damo.StoreOptions(keep_checkpoints=None)) as store:
        ebc = collection(store, "t")
        for _ in range(11):
            update(ebc, {"t": [[1]]})
            store.checkpoint()
        for _ in range(2):
            store.table("t").set([1], torch.ones(1, 4))
            store.checkpoint()
        assert names(store.checkpoints()) == [f"step_{i}" for i in range(12)] + ["step_11.1", "step_11.2"]
        (path / "checkpoints" / "step_99").mkdir()  # no manifest: not one
        assert len(store.checkpoints()) == 14


def test_a_checkpoint_goes_to_a_path_of_ones_own(trained, tmp_path):
    update(collection(trained, "t", initial=0.0), {"t": [[4]]})
    path = trained.checkpoint(tmp_path / "mine")
    assert path == tmp_path / "mine"
    assert sorted(p.name for p in path.iterdir()) == ["line.json", "manifest.json", "origin.json", "rows"]
    assert names(trained.checkpoints()) == ["step_0", "step_1", "step_2", "step_3"]
    for taken, message in ((path, "exists already"), (tmp_path / "no" / "where", "needs an existing parent")):
        with pytest.raises(ValueError, match=message):
            trained.checkpoint(taken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "store"]


def test_a_checkpoint_does_not_change_with_the_store(trained, tmp_path):
    contents = {p: p.read_bytes() for p in (trained.path / "checkpoints").rglob("*") if p.is_file()}
    ebc = collection(trained, "t", initial=0.0)
    for i in range(20):
        update(ebc, {"t": [[1], [i]]})
        trained.table("t").delete([i])
        trained.flush()
    trained.restore(2)
    trained.checkpoint(tmp_path / "later")
    assert {p: p.read_bytes() for p in contents} == contents


def test_unchanged_files_are_shared_by_checkpoints(trained):
    first = trained.checkpoint(trained.path.parent / "a")
    second = trained.checkpoint(trained.path.parent / "b")
    files = sorted(p.name for p in (first / "rows").glob("*.sst"))
    assert files == sorted(p.name for p in (second / "rows").glob("*.sst"))
    for name in files:
        assert (first / "rows" / name).stat().st_ino == (second / "rows" / name).stat().st_ino


@pytest.mark.parametrize("which", [2, "step_2", "path", "Path", "relative path"])
def test_restore_takes_a_step_a_name_or_a_path(trained, which, monkeypatch):
    inside = trained.path / "checkpoints" / "step_2"
    monkeypatch.chdir(inside.parent.parent.parent)
    which = {"path": str(inside), "Path": inside, "relative path": "store/checkpoints/step_2"}.get(which, which)
    trained.restore(which)
    assert trained.step == 2
    assert trained.table("t").contains([1, 2, 3]).tolist() == [True, True, False]
    trained.close()
    with damo.EmbeddingStore(trained.path, restore=which) as store:
        collection(store, "t", initial=0.0)
        assert store.table("t").contains([1, 2, 3]).tolist() == [True, True, False]
    with damo.EmbeddingStore(trained.path, restore=which, read_only=True) as store:
        assert store.step == 2


def test_restore_refuses_what_is_not_there_and_changes_nothing(trained):
    update(collection(trained, "t", initial=0.0), {"t": [[4]]})
    rows = rows_of(trained)
    for which in (7, "step_7", trained.path, "nowhere/at/all"):
        with pytest.raises(ValueError, match=r"has no checkpoint .*; it has step_0, step_1, step_2, step_3"):
            trained.restore(which)
    assert_same_rows(rows_of(trained), rows)


def test_restore_goes_back_and_forth(trained):
    ebc = collection(trained, "t", initial=0.0)
    for which, there in ((1, [True, False, False]), (3, [True] * 3), (0, [False] * 3), ("latest", [True] * 3)):
        trained.restore(which)
        assert trained.table("t").contains([1, 2, 3]).tolist() == there
        assert len(trained.table("t")) == trained.step == sum(there)
        assert look_up(ebc.eval(), {"t": [[1], [2], [3]]})[:, 0].tolist() == [-1.0 if t else 0.0 for t in there]


def test_a_checkpoint_copied_elsewhere_starts_another_store(trained, tmp_path):
    shutil.copytree(trained.path / "checkpoints" / "step_2", tmp_path / "copied")
    with damo.EmbeddingStore(tmp_path / "other", restore=tmp_path / "copied") as store:
        ebc = collection(store, "t", initial=0.0)
        assert store.table("t").contains([1, 2, 3]).tolist() == [True, True, False]
        update(ebc, {"t": [[9]]})
    shutil.rmtree(tmp_path / "copied")
    with damo.EmbeddingStore(tmp_path / "other") as store:
        collection(store, "t", initial=0.0)
        assert store.table("t").contains([1, 2, 3, 9]).tolist() == [True, True, False, True]
    assert not trained.table("t").contains([9]).any()


def test_a_store_that_began_elsewhere_keeps_it_even_if_nothing_changes(trained, tmp_path):
    damo.EmbeddingStore(tmp_path / "other", restore=trained.path / "checkpoints" / "step_2").close()
    with damo.EmbeddingStore(tmp_path / "other") as store:
        assert store.step == 2


def test_a_store_moves_with_its_directory(path, tmp_path):
    with damo.EmbeddingStore(path) as store:
        update(collection(store, "t", initial=0.0), {"t": [[1]]})
    path.rename(tmp_path / "moved")
    with damo.EmbeddingStore(tmp_path / "moved") as store:
        collection(store, "t", initial=0.0)
        assert len(store.table("t")) == 1


def test_opened_at_an_older_checkpoint_it_is_saved_as_that(trained, path):
    trained.close()
    with damo.EmbeddingStore(path, restore=1) as store:
        assert damo.checkpoint_info(store.checkpoint()).store_step == 1
    with damo.EmbeddingStore(path) as store:
        collection(store, "t", initial=0.0)
        assert store.table("t").contains([1, 2, 3]).tolist() == [True, False, False]


def test_a_damaged_manifest_hides_no_other_checkpoint(trained, path):
    """But nobody can tell whether it was the newest."""
    trained.close()
    (path / "checkpoints" / "step_1" / "manifest.json").write_text("{}")
    with pytest.raises(damo.CorruptionError, match=r"step_1.*restore="):
        damo.EmbeddingStore(path)
    with damo.EmbeddingStore(path, restore="step_3") as store:
        ebc = collection(store, "t", initial=0.0)
        update(ebc, {"t": [[4]]})
        assert store.checkpoint().name == "step_4"
    with damo.EmbeddingStore(path, restore="step_4") as store:
        collection(store, "t", initial=0.0)
        assert store.table("t").contains([1, 2, 3, 4]).all()
