"""Checkpoints that are written while training goes on: `checkpoint_async`, `save_model_async`."""

import _thread
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.store import checkpoint_writer
from mixed_run import MixedRun, SmallModel, assert_same_rows, collection, rows_after, rows_of, update
from processes import run
from support import A_HANDFUL_OF_ROWS


@pytest.fixture(params=[0, A_HANDFUL_OF_ROWS], ids=["all rows cached", "few rows cached"])
def store(tmp_path, request):
    options = damo.StoreOptions(num_threads=2, cache_bytes=request.param)
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB", options=options) as store:
        yield store


def test_it_holds_the_rows_of_its_moment_and_training_loses_nothing(store):
    whole = MixedRun(store)
    saved = {}
    for step in range(0, 12, 2):
        whole.train(step, step + 2)
        saved[step + 2] = store.checkpoint_async()
    assert_same_rows(rows_of(store), rows_after(12))
    for step, future in saved.items():
        assert future.result().name == f"step_{step}"
        with damo.EmbeddingStore(future.result(), read_only=True) as copy:
            assert copy.step == step
            MixedRun(copy)
            assert_same_rows(rows_of(copy), rows_after(step))
    assert [path.name for path in store.checkpoints()] == ["step_0", *(f"step_{step}" for step in saved)]


def test_dense_part_and_rows_are_of_one_moment(store, tmp_path):
    model = SmallModel(store)
    model.step()
    expected = model.state()
    saved = damo.save_model_async(model, tmp_path / "saved", optimizer=model.optimizer, extra={"position": 7})
    model.step()
    after = model.state()
    assert after != expected
    damo.load_model(saved.result(), model, optimizer=model.optimizer)
    assert model.state() == expected
    assert damo.checkpoint_info(saved.result()).extra == {"position": 7}
    model.step()
    assert model.state() == after


def test_nothing_changed_is_the_newest_checkpoint(store):
    update(collection(store, "t"), {"t": [[1]]})
    first = store.checkpoint_async()
    assert store.checkpoint_async().result() == first.result() == store.checkpoint()


def test_what_can_be_known_at_once_is_refused_at_once(store, tmp_path):
    model = SmallModel(store)
    model.step()
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        store.checkpoint_async(tmp_path / "taken")
    with pytest.raises(ValueError, match="cannot be loaded without pickle"):
        damo.save_model_async(model, tmp_path / "new", extra={"x": object()})
    model.step()  # as if nothing had been asked for
    assert damo.save_model_async(model, tmp_path / "new").result() == tmp_path / "new"


def test_close_waits_for_it(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        MixedRun(store).train(0, 3)
        saved = store.checkpoint_async()
    assert saved.done()
    assert saved.result() == tmp_path / "store" / "checkpoints" / "step_3"
    with damo.EmbeddingStore(tmp_path / "store") as store:
        MixedRun(store)
        assert_same_rows(rows_of(store), rows_after(3))


def train_with_a_full_disk_in_between(path: Path) -> str:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with damo.EmbeddingStore(path) as store:
        whole = MixedRun(store)
        whole.train(0, 3)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        failed = store.checkpoint_async()
        whole.train(3, 5)
        error = failed.exception()
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert isinstance(error, damo.OutOfSpaceError), error
        assert [p.name for p in store.checkpoints()] == ["step_0"]
        assert not list((path / "checkpoints").glob(".*"))
        whole.train(5, 7)
    return str(error)


def test_one_that_fails_says_so_and_loses_nothing(tmp_path):
    assert "step_3" in run(train_with_a_full_disk_in_between, tmp_path / "store")
    with damo.EmbeddingStore(tmp_path / "store") as store:
        MixedRun(store)
        assert_same_rows(rows_of(store), rows_after(7))


def test_unlinked_it_shares_no_file_with_the_store(store, tmp_path):
    update(collection(store, "t"), {"t": [[1]]})
    copied = store.checkpoint(tmp_path / "copied", link=False)
    update(collection(store, "t"), {"t": [[1]]})
    linked = store.checkpoint_async(tmp_path / "linked").result()
    assert {file.stat().st_nlink for file in copied.rglob("*.log")} == {1}
    assert {file.stat().st_nlink for file in linked.rglob("*.log")} == {2}  # the other is the store's
    with damo.EmbeddingStore(copied, read_only=True) as copy:
        collection(copy, "t")
        assert len(copy.table("t")) == 1


def test_rows_that_are_set_or_deleted_meanwhile_are_not_in_it(store, tmp_path):
    whole = MixedRun(store)
    whole.train(0, 3)
    saved = store.checkpoint_async(tmp_path / "saved")
    table = store.table("user")
    ids = torch.tensor(sorted(rows_after(3)["user"]))
    table.set(ids[:50], torch.ones(50, table.dim))
    table.delete(ids[50:])
    assert len(table) == 50
    with damo.EmbeddingStore(saved.result(), read_only=True) as copy:
        MixedRun(copy)
        assert_same_rows(rows_of(copy), rows_after(3))


def test_what_is_called_when_it_is_done_can_close_the_store(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        whole = MixedRun(store)
        whole.train(0, 3)
        closed = threading.Event()
        saved = store.checkpoint_async()
        saved.add_done_callback(lambda _: (store.close(), closed.set()))
        assert closed.wait(300)
        assert store.closed
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        MixedRun(store)
        assert_same_rows(rows_of(store), rows_after(3))


def test_it_cannot_be_cancelled(store, tmp_path):
    module = collection(store, "t")
    update(module, {"t": [[1]]})
    future = store.checkpoint_async(tmp_path / "checkpoint")
    assert not future.cancel()
    update(module, {"t": [[2]]})
    store.table("t").set([3], torch.ones(1, store.table("t").dim))
    assert future.result() == tmp_path / "checkpoint"
    store.close()


@pytest.mark.parametrize("queued", [True, False])
def test_interrupted_as_it_is_handed_over_it_is_given_up(store, tmp_path, monkeypatch, queued):
    """Neither is it written later, when another one has begun."""
    module = collection(store, "t")
    update(module, {"t": [[1]]})
    store.checkpoint_async().result()
    update(module, {"t": [[2]]})
    begun, start = threading.Event(), _thread.start_new_thread

    def interrupted(work, arguments):
        if queued:
            start(lambda: (begun.wait(), work()), arguments)  # nothing is written before
        raise KeyboardInterrupt

    monkeypatch.setattr(_thread, "start_new_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.checkpoint_async(tmp_path / "one")
    monkeypatch.undo()
    store.table("t").delete([1])
    other = store.checkpoint_async(tmp_path / "other")
    begun.set()
    with damo.EmbeddingStore(other.result(), read_only=True) as copy:
        collection(copy, "t")
        assert copy.table("t").contains([1, 2]).tolist() == [False, True]
    store.close()
    assert not (tmp_path / "one").exists()


def test_where_there_can_be_no_thread_it_is_written_at_once(store, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    update(collection(store, "t"), {"t": [[1]]})
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    assert store.checkpoint_async(tmp_path / "one").done()
    monkeypatch.undo()
    with damo.EmbeddingStore(tmp_path / "one", read_only=True) as copy:
        collection(copy, "t")
        assert copy.step == 1


@pytest.mark.parametrize("what", ["its work", "its log"])
def test_a_thread_that_fails_is_an_error_and_no_hang(store, tmp_path, monkeypatch, what):
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    update(collection(store, "t"), {"t": [[1]]})
    monkeypatch.setattr(checkpoint_writer, "build_directory", fail)
    if what == "its log":
        monkeypatch.setattr(checkpoint_writer._log, "exception", fail)
    assert isinstance(store.checkpoint_async(tmp_path / "one").exception(), MemoryError)
    monkeypatch.undo()
    assert store.checkpoint_async(tmp_path / "one").result() == tmp_path / "one"


def test_a_wait_for_it_is_interrupted_by_what_a_signal_handler_raises(store, tmp_path, monkeypatch):
    class ToldError(Exception):
        pass

    def tell(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise ToldError

    def interrupted(wait: Callable[[], object]) -> None:
        # Again and again: Python sees a signal that comes just before a wait after it alone.
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.25)
        wait()

    written, build = threading.Event(), checkpoint_writer.build_directory

    def held(*arguments: object) -> Path:
        written.wait()
        return build(*arguments)

    monkeypatch.setattr(checkpoint_writer, "build_directory", held)
    update(collection(store, "t"), {"t": [[1]]})
    saved = store.checkpoint_async(tmp_path / "one")
    before = signal.signal(signal.SIGALRM, tell)
    try:
        for wait in (saved.result, saved.exception, store.close, lambda: store.checkpoint(tmp_path / "other")):
            for _ in range(20):
                with pytest.raises(ToldError):
                    interrupted(wait)
    finally:
        signal.signal(signal.SIGALRM, before)
        written.set()
    assert saved.result() == tmp_path / "one"
    update(collection(store, "t"), {"t": [[1]]})
    assert store.step == 2


def test_a_callback_and_another_thread_may_both_close(store):
    update(collection(store, "t"), {"t": [[1]]})
    saved = store.checkpoint_async()
    begun, closing = threading.Event(), threading.Event()
    saved.add_done_callback(lambda _: (begun.set(), closing.wait(), store.close()))
    begun.wait()
    closer = threading.Thread(target=store.close)
    closer.start()
    while not store.closed:
        closer.join(0.01)
    closing.set()
    closer.join(300)
    assert not closer.is_alive()


def test_the_thread_that_writes_is_told_that_it_would_wait_for_itself(store, tmp_path, monkeypatch):
    """As a finalizer is that garbage collection comes upon there."""
    errors, build = [], checkpoint_writer.build_directory

    def with_a_finalizer(*arguments: object) -> object:
        for call in (store.close, store.flush, store.checkpoint, lambda: next(store.table("t").items())):
            try:
                call()
            except damo.DamoError as error:
                errors.append(str(error))
        return build(*arguments)

    update(collection(store, "t"), {"t": [[1]]})
    monkeypatch.setattr(checkpoint_writer, "build_directory", with_a_finalizer)
    store.checkpoint_async(tmp_path / "one").result()
    assert len(errors) == 4
    assert all("by the thread that writes a checkpoint" in error for error in errors)
    monkeypatch.undo()
    store.close()
