"""What in a directory of checkpoints is one, is damaged, or is the user's."""

import os
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.rescue.verification import verify
from mixed_run import collection, update
from support import small_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """With checkpoints of step 0 and step 1."""
    with small_store(tmp_path / "store") as opened:
        update(collection(opened, "t"), {"t": [[1, 2]]})
    return tmp_path / "store"


def link(path: Path, moved: Path) -> None:
    path.symlink_to(moved)


def dangling_link(path: Path, moved: Path) -> None:
    path.symlink_to(moved / "nowhere")


def fifo(path: Path, moved: Path) -> None:
    os.mkfifo(path)


def file(path: Path, moved: Path) -> None:
    path.write_text("x")


def empty_directory(path: Path, moved: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [link, dangling_link, fifo, file, empty_directory])
def test_what_is_in_the_place_of_the_newest_checkpoint_is_damage_and_no_older_one_is_taken(store, tmp_path, put):
    newest = store / "checkpoints" / "step_1"
    newest.rename(tmp_path / "moved")
    put(newest, tmp_path / "moved")
    for how in ({}, {"read_only": True}):
        with pytest.raises(damo.CorruptionError, match=f"{newest}.*It may be the newest checkpoint"):
            damo.EmbeddingStore(store, memory_budget="64MiB", **how)
    assert newest in {finding.path for finding in verify(store, lambda *_: None)} | {
        finding.path.parent for finding in verify(store, lambda *_: None)
    }
    with damo.EmbeddingStore(store, memory_budget="64MiB", restore="step_0") as older:
        assert older.step == 0


def test_links_by_other_names_are_the_users(store, tmp_path):
    (store / "checkpoints" / "latest").symlink_to("step_1")
    (store / "checkpoints" / "notes").mkdir()
    with damo.EmbeddingStore(store, memory_budget="64MiB") as opened:
        assert opened.step == 1
        assert [path.name for path in opened.checkpoints()] == ["step_0", "step_1"]
    assert list(verify(store, lambda *_: None)) == []


def test_checkpoints_behind_a_link_are_refused(store, tmp_path):
    (store / "checkpoints").rename(tmp_path / "elsewhere")
    (store / "checkpoints").symlink_to(tmp_path / "elsewhere")
    for call in (
        lambda: damo.EmbeddingStore(store, memory_budget="64MiB"),
        lambda: damo.EmbeddingStore(store, memory_budget="64MiB", read_only=True),
        lambda: damo.checkpoint_info(store),
        lambda: list(verify(store, lambda *_: None)),
    ):
        with pytest.raises(damo.CorruptionError, match=r"checkpoints.*symbolic link"):
            call()
