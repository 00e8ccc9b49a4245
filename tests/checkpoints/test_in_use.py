"""Locks by which processes tell each other what they work with."""

import fcntl
import os
import threading

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints import in_use
from damo_torchrec.checkpoints.in_use import InUse, is_in_use, lock
from support import small_store


@pytest.fixture
def descriptor(tmp_path):
    """Of a file that this has locked for itself."""
    (tmp_path / "file").write_bytes(b"")
    opened = os.open(tmp_path / "file", os.O_RDONLY)
    fcntl.flock(opened, fcntl.LOCK_EX)
    yield opened
    os.close(opened)


def test_a_directory_is_in_use_until_the_last_end(tmp_path):
    first, second = InUse(tmp_path), InUse(tmp_path)
    assert is_in_use(tmp_path)
    first.end()
    first.end()
    assert is_in_use(tmp_path)
    second.end()
    assert not is_in_use(tmp_path)


def test_what_has_taken_the_place_of_a_directory_is_told_from_it(tmp_path):
    (tmp_path / "place").mkdir()
    used = InUse(tmp_path / "place")
    assert used.is_at(tmp_path / "place")
    (tmp_path / "place").rename(tmp_path / "before")
    assert not used.is_at(tmp_path / "place")
    (tmp_path / "place").mkdir()
    assert not used.is_at(tmp_path / "place")
    used.end()


def test_what_is_not_there_a_link_or_a_fifo_is_in_nobodys_use(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path)
    with_link = InUse(tmp_path)
    for name in ("fifo", "link", "none"):
        assert not is_in_use(tmp_path / name)
    with_link.end()


def test_a_lock_that_others_hold_is_waited_for_but_not_for_ever(tmp_path, descriptor):
    other = os.open(tmp_path / "file", os.O_RDONLY)
    assert not lock(other, fcntl.LOCK_SH)
    assert not lock(other, fcntl.LOCK_SH, patience=0.1)
    threading.Timer(0.1, lambda: fcntl.flock(descriptor, fcntl.LOCK_UN)).start()
    assert lock(other, fcntl.LOCK_SH, patience=60)
    os.close(other)


def test_who_cannot_say_that_he_uses_a_file_is_warned_and_told_who_holds_its_lock(
    tmp_path, descriptor, monkeypatch, caplog
):
    monkeypatch.setattr(in_use, "_PATIENCE", 0.0)
    InUse(tmp_path / "file").end()
    assert f"{tmp_path / 'file'} is used without a word to others" in caplog.text
    assert f"process {os.getpid()} has held its lock" in caplog.text


def test_a_store_whose_manifest_somebody_keeps_locked_is_read_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(in_use, "_PATIENCE", 0.0)
    with small_store(tmp_path / "store") as store:
        checkpoint = store.checkpoint(tmp_path / "checkpoint")
    opened = os.open(checkpoint / "manifest.json", os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        damo.EmbeddingStore(checkpoint, read_only=True).close()
    finally:
        os.close(opened)
    assert f"process {os.getpid()} has held its lock" in caplog.text
