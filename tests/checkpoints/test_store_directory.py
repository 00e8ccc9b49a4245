"""A store's directory: who has it open, and who may."""

import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints import store_directory
from mixed_run import collection, update
from processes import started
from support import small_store
from wrong_batches import refused, trained


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


def test_a_store_is_open_once_at_a_time(path):
    with damo.EmbeddingStore(path) as store:
        with pytest.raises(damo.StoreLockedError, match=rf"{path} is open already, in process {os.getpid()}"):
            damo.EmbeddingStore(path)
        update(collection(store, "t"), {"t": [[1]]})  # the one that is open goes on
        damo.EmbeddingStore(path, read_only=True).close()
    damo.EmbeddingStore(path).close()


def test_a_directory_that_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{tmp_path} is neither empty nor a store"):
        small_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def hold(connection, path):
    """Keeps a store open until the other end of the connection closes."""
    with small_store(path):
        connection.send("open")
        with pytest.raises(EOFError):
            connection.recv()


def test_a_store_that_another_process_has_open_is_refused_with_path_and_process(tmp_path):
    path = tmp_path / "store"
    with started(hold, path) as (process, connection):
        assert connection.recv() == "open"
        with pytest.raises(damo.StoreLockedError, match=f"{path} is open already, in process {process}"):
            small_store(path)
    small_store(path).close()


def test_a_store_that_this_process_has_open_is_refused(tmp_path):
    with small_store(tmp_path / "store") as store:
        trained(store)
        with refused(store, damo.StoreLockedError, rf"{tmp_path / 'store'} .* this one: close\(\) the store"):
            small_store(tmp_path / "store")


def hold_and_have_a_child(connection, path):
    """Has a store open, and a child as a data loader's worker would be, which ends when it is told to."""
    store = small_store(path)
    child = os.fork()
    if child == 0:
        connection.recv()
        os._exit(0)
    connection.send(child)
    signal.pause()
    store.close()


def has_died(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True


def test_a_store_whose_process_has_ended_is_waited_for_while_its_children_live(tmp_path, monkeypatch):
    path = tmp_path / "store"
    with started(hold_and_have_a_child, path) as (process, connection):
        child = connection.recv()
        os.kill(process, signal.SIGKILL)
        while not has_died(process):
            pass
        monkeypatch.setattr(store_directory, "_CHILDREN_END_AFTER", 0)
        os.kill(child, signal.SIGSTOP)  # nothing is asked of it
        with pytest.raises(damo.StoreLockedError, match=rf"process {process}, which has ended, .* processes {child}$"):
            small_store(path)
        monkeypatch.undo()
        os.kill(child, signal.SIGCONT)
        threading.Timer(0.5, connection.send, ["end"]).start()
        small_store(path).close()


def test_what_is_no_directory_of_rows_is_not_removed_whatever_its_name(tmp_path):
    with small_store(tmp_path / "store"):
        pass
    for name in ("live.new", "live.unclean-1"):
        (tmp_path / "store" / name).mkdir()
        (tmp_path / "store" / name / "thesis.txt").write_text("thesis")
    with pytest.raises(damo.DamoError, match=r"live\.new is no directory of rows"):
        small_store(tmp_path / "store")
    (tmp_path / "store" / "live.new").rename(tmp_path / "mine")
    with small_store(tmp_path / "store"):
        pass
    assert (tmp_path / "store" / "live.unclean-1" / "thesis.txt").read_text() == "thesis"


# ---------------------------------------------------------------- what others may have put there


def put_link(lock, precious):
    lock.symlink_to(precious)


def put_dangling_link(lock, precious):
    precious.unlink()
    lock.symlink_to(precious)


def put_hard_link(lock, precious):
    precious.write_text("")
    os.link(precious, lock)


def put_fifo(lock, precious):
    os.mkfifo(lock)


def put_directory(lock, precious):
    lock.mkdir()


def put_device(lock, precious):
    lock.symlink_to("/dev/zero")


def put_file(lock, precious):
    lock.write_text("precious")


@pytest.mark.parametrize(
    "put", [put_link, put_dangling_link, put_hard_link, put_fifo, put_directory, put_device, put_file]
)
def test_a_lock_that_is_none_is_refused_and_nothing_is_written_or_made(path, tmp_path, put):
    small_store(path).close()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    lock = path / "LOCK"
    lock.unlink()
    put(lock, precious)
    before = precious.read_text() if precious.exists() else None
    content = lock.read_text() if put is put_file else None
    with pytest.raises(damo.CorruptionError, match=rf"{lock}(: expected| is a .*, expected a regular file)"):
        small_store(path)
    assert (precious.read_text() if precious.exists() else None) == before
    assert content is None or lock.read_text() == content


@pytest.mark.parametrize("name", ["checkpoints", "live", "live.new"])
def test_a_directory_of_a_store_that_is_a_link_elsewhere_is_refused(path, tmp_path, name):
    small_store(path).close()
    elsewhere = tmp_path / "elsewhere"
    if name == "checkpoints":
        (path / name).rename(elsewhere)
    else:
        elsewhere.mkdir()
    (elsewhere / ".mine.removed").mkdir()
    (path / name).symlink_to(elsewhere)
    with pytest.raises(damo.CorruptionError, match=f"{path / name}: expected a directory of the store, found a symb"):
        small_store(path)
    assert (elsewhere / ".mine.removed").is_dir()


def test_what_is_written_beside_a_file_before_it_takes_its_place_follows_no_link(path, tmp_path):
    small_store(path).close()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (path / "origin.json").unlink()
    (path / ".origin.json.tmp").symlink_to(precious)
    small_store(path).close()
    assert precious.read_text() == "precious"
    assert (path / "origin.json").is_file()


def test_a_lock_that_says_nothing_is_held_by_who_the_system_says(path):
    small_store(path).close()
    (path / "LOCK").write_text("")
    descriptor = os.open(path / "LOCK", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(damo.StoreLockedError, match=rf"somebody locks it: process {os.getpid()}"):
            small_store(path)
    finally:
        os.close(descriptor)
    small_store(path).close()
