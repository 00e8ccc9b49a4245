"""Checkpoints that are written while training goes on: `checkpoint_async`, `save_model_async`."""

import resource
import signal
import threading
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
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
    executor = store.session._writer._thread
    begun, submit = threading.Event(), executor.submit
    submit(begun.wait)  # nothing is written before

    def interrupted(work):
        if queued:
            submit(work)
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "submit", interrupted)
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
