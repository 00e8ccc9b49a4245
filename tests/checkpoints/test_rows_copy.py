"""`damo_torchrec.checkpoints.rows_copy`: whose files a store shares, and what of a checkpoint it takes over."""

import os
import shutil
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints import rows_copy
from mixed_run import SmallModel
from support import small_store

A_STRANGER = 12345


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """With a table file."""
    with small_store(tmp_path / "theirs") as store:
        SmallModel(store).step()
        store.flush()
        return store.checkpoint(tmp_path / "checkpoint")


def inodes(path: Path) -> set[int]:
    return {file.stat().st_ino for file in path.rglob("*.sst")}


def opened(path: Path, checkpoint: Path, **options: object) -> set[int]:
    """The inodes of table files in the first checkpoint of a store that begins with another one."""
    with damo.EmbeddingStore(path, restore=checkpoint, options=damo.StoreOptions(**options)) as store:
        SmallModel(store)
        return inodes(store.checkpoints()[-1])


def test_files_of_ones_own_are_shared(checkpoint, tmp_path):
    assert opened(tmp_path / "mine", checkpoint) == inodes(checkpoint) != set()


def test_files_are_copied_where_the_caller_says_so(checkpoint, tmp_path):
    assert not opened(tmp_path / "mine", checkpoint, copy_restored=True) & inodes(checkpoint)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_files_that_others_may_write_are_copied(checkpoint, tmp_path, mode):
    for file in checkpoint.rglob("*.sst"):
        file.chmod(mode)
    mine = opened(tmp_path / "mine", checkpoint)
    assert mine
    assert not mine & inodes(checkpoint)
    assert all(file.stat().st_mode & 0o022 == 0 for file in (tmp_path / "mine").rglob("*.sst"))


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to another user by root alone")
def test_files_of_another_user_are_copied(checkpoint, tmp_path):
    for file in checkpoint.rglob("*.sst"):
        os.chown(file, A_STRANGER, A_STRANGER)
    mine = opened(tmp_path / "mine", checkpoint)
    assert mine
    assert not mine & inodes(checkpoint)


def test_what_is_copied_is_the_same_where_the_system_cannot_copy(checkpoint, tmp_path, monkeypatch):
    def unable(*_: int) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "copy_file_range", unable)
    opened(tmp_path / "mine", checkpoint, copy_restored=True)
    assert_same_files(checkpoint, tmp_path / "mine" / "checkpoints")


def test_a_system_that_finds_no_bytes_is_not_believed(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    opened(tmp_path / "mine", checkpoint, copy_restored=True)
    assert_same_files(checkpoint, tmp_path / "mine" / "checkpoints")


def assert_same_files(one: Path, other: Path) -> None:
    for file in one.rglob("*.sst"):
        (copied, *_) = other.rglob(file.name)
        assert copied.read_bytes() == file.read_bytes()


def test_what_no_manifest_names_is_not_taken_over(checkpoint, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (checkpoint / "rows" / "notes.txt").symlink_to(tmp_path / "secret")
    (checkpoint / "rows" / "junk.bin").write_bytes(b"junk")
    os.mkfifo(checkpoint / "rows" / "fifo")
    with damo.EmbeddingStore(tmp_path / "mine", restore=checkpoint) as store:
        names = {path.name for path in store.path.rglob("*")}
    assert not names & {"notes.txt", "junk.bin", "fifo"}


@pytest.mark.parametrize("name", ["CURRENT", "000008.sst", "000099.log", "000099.sst"])
@pytest.mark.parametrize("what", ["link", "fifo"])
@pytest.mark.parametrize("read_only", [True, False])
def test_links_and_fifos_in_the_place_of_files_are_refused(checkpoint, tmp_path, name, what, read_only):
    file = checkpoint / "rows" / name
    if file.exists():
        shutil.move(file, tmp_path / "away")
    else:
        shutil.copy(next(checkpoint.rglob("*.sst")), tmp_path / "away")
    if what == "link":
        file.symlink_to(tmp_path / "away")
    else:
        os.mkfifo(file)
    arguments = (checkpoint, None) if read_only else (tmp_path / "mine", checkpoint)
    with pytest.raises(damo.CorruptionError, match=name):
        damo.EmbeddingStore(arguments[0], read_only=read_only, restore=arguments[1])


def test_names_of_rows_are_those_in_their_directory():
    assert rows_copy.rows_files(["rows/1.sst", "rows/more/2.sst", "model.pt", "CURRENT"]) == ["1.sst"]
