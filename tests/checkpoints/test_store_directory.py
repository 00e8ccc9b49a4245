"""A store's directory: who has it open, and who may."""

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
