"""Promise 5: after `kill -9` at any instant, the store is exactly its last completed checkpoint."""

import itertools
import logging
import os
import shutil
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints import store_directory as directory
from kills import PLACES, then_die
from mixed_run import MixedRun, assert_same_rows, collection, rows_after, rows_of, update
from processes import kill_this_process, run_until_killed, started
from support import A_HANDFUL_OF_ROWS

OPTIONS = damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS, num_threads=2)


def assert_is_exactly(path: Path, steps: int) -> None:
    with damo.EmbeddingStore(path) as store:
        assert store.step == steps
        MixedRun(store)
        assert_same_rows(rows_of(store), rows_after(steps))


# ------------------------------------------------------------------ killed at a given place


def die_in_a_checkpoint(path: Path, place: str) -> None:
    store = damo.EmbeddingStore(path, options=OPTIONS)
    whole = MixedRun(store)
    whole.train(0, 3)
    store.checkpoint()
    whole.train(3, 5)
    PLACES[place][0]()
    store.checkpoint()


@pytest.mark.parametrize("place", PLACES)
def test_promise_5_killed_in_a_checkpoint(tmp_path, place):
    run_until_killed(die_in_a_checkpoint, tmp_path / "store", place)
    assert_is_exactly(tmp_path / "store", 5 if PLACES[place][1] else 3)
    assert not list((tmp_path / "store" / "checkpoints").glob(".*")), "an unfinished checkpoint was left"


def die_after_steps(path: Path, steps: int, flush: bool) -> None:
    store = damo.EmbeddingStore(path, options=OPTIONS)
    whole = MixedRun(store)
    for step in range(steps):
        if step == 2:
            store.checkpoint()
        whole.train(step, step + 1)
        if flush:
            store.flush()
    kill_this_process()


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_promise_5_killed_after_steps(tmp_path, steps, flush):
    """Also before the first checkpoint: a new store begins with an empty one. A flush makes nothing durable."""
    run_until_killed(die_after_steps, tmp_path / "store", steps, flush)
    assert_is_exactly(tmp_path / "store", 2 if steps == 6 else 0)


IN_CLOSE = {
    "before the live rows are removed": lambda: setattr(directory.StoreDirectory, "remove_live", kill_this_process),
    "when the live rows are removed": lambda: setattr(directory.StoreDirectory, "release", kill_this_process),
}


def die_in_close(path: Path, place: str) -> None:
    store = damo.EmbeddingStore(path, options=OPTIONS)
    MixedRun(store).train(0, 4)
    IN_CLOSE[place]()
    store.close()


@pytest.mark.parametrize("place", IN_CLOSE)
def test_promise_5_killed_in_close(tmp_path, place):
    run_until_killed(die_in_close, tmp_path / "store", place)
    assert_is_exactly(tmp_path / "store", 4)


IN_OPENING = {
    "before the old rows are set aside": lambda: setattr(directory.StoreDirectory, "set_live_aside", kill_this_process),
    "when the old rows are set aside": lambda: setattr(
        directory.StoreDirectory, "set_live_aside", then_die(directory.StoreDirectory.set_live_aside)
    ),
    "before the new rows are in place": lambda: setattr(directory.StoreDirectory, "remove_live", kill_this_process),
    "when the new rows are in place": lambda: setattr(
        directory.StoreDirectory, "start_live", then_die(directory.StoreDirectory.start_live)
    ),
}


def die_when_opened(path: Path, place: str) -> None:
    IN_OPENING[place]()
    damo.EmbeddingStore(path)


@pytest.mark.parametrize("place", IN_OPENING)
def test_promise_5_killed_again_when_it_is_opened_again(tmp_path, place):
    run_until_killed(die_after_steps, tmp_path / "store", 6, False)
    run_until_killed(die_when_opened, tmp_path / "store", place)
    assert_is_exactly(tmp_path / "store", 2)


def die_when_going_back(path: Path) -> None:
    store = damo.EmbeddingStore(path, options=OPTIONS)
    whole = MixedRun(store)
    for step in range(4):
        whole.train(step, step + 1)
        store.checkpoint()
    store.restore(1)
    whole.train(1, 3)
    store.checkpoint()
    whole.train(3, 8)
    kill_this_process()


def test_promise_5_killed_after_going_back_it_is_the_checkpoint_made_last(tmp_path):
    run_until_killed(die_when_going_back, tmp_path / "store")
    assert_is_exactly(tmp_path / "store", 3)


def die_after_starting_from_elsewhere(path: Path, source: Path) -> None:
    store = damo.EmbeddingStore(path, restore=source, options=OPTIONS)
    MixedRun(store).train(3, 5)
    kill_this_process()


def test_promise_5_killed_in_a_store_that_began_with_a_checkpoint_of_another(tmp_path):
    with damo.EmbeddingStore(tmp_path / "first") as store:
        MixedRun(store).train(0, 3)
        source = store.checkpoint(tmp_path / "handed-over")
    run_until_killed(die_after_starting_from_elsewhere, tmp_path / "second", source)
    assert_is_exactly(tmp_path / "second", 3)


# ------------------------------------------------------------------ killed at any instant


def train_and_checkpoint_forever(connection: Connection, path: Path) -> None:
    store = damo.EmbeddingStore(path, options=OPTIONS)
    whole = MixedRun(store)
    for step in itertools.count():
        whole.train(step, step + 1)
        store.checkpoint()
        connection.send(store.step)


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5, 8])
def test_promise_5_killed_at_any_instant(tmp_path, checkpoints):
    """The process is somewhere in a step or in the next checkpoint: it goes on while this one decides to kill it."""
    with started(train_and_checkpoint_forever, tmp_path / "store") as (process, connection):
        completed = [connection.recv() for _ in range(checkpoints)]
        os.kill(process, signal.SIGKILL)
        try:
            while True:
                completed.append(connection.recv())
        except EOFError:
            pass
    assert completed == list(range(1, len(completed) + 1))
    with damo.EmbeddingStore(tmp_path / "store") as store:
        assert store.step in (completed[-1], completed[-1] + 1)  # the last one may not have come to say so
        MixedRun(store)
        assert_same_rows(rows_of(store), rows_after(store.step))


# ------------------------------------------------------------------ what an unclean store says


def test_promise_5_opening_after_a_crash_warns_and_sets_the_old_rows_aside(tmp_path, caplog):
    path = tmp_path / "store"
    for crash in (1, 2):
        run_until_killed(die_after_steps, path, 6, False)
        with caplog.at_level(logging.WARNING), damo.EmbeddingStore(path) as store:
            assert store.step == 2
        (record,) = [r for r in caplog.records if r.name.startswith("damo_torchrec")]
        assert record.levelno == logging.WARNING
        assert "was not closed" in record.getMessage()
        assert "step_2" in record.getMessage()
        assert f"live.unclean-{crash}" in record.getMessage()
        assert list((path / f"live.unclean-{crash}").glob("*.sst")), "what was set aside is gone"
        caplog.clear()
        shutil.rmtree(path / "checkpoints" / "step_2")
        assert sorted(p.name for p in path.iterdir()) == ["LOCK", "checkpoints", f"live.unclean-{crash}", "origin.json"]


@pytest.mark.parametrize(("keep", "kept"), [(0, []), (2, ["live.unclean-2", "live.unclean-3"])])
def test_promise_5_as_many_rows_of_crashes_are_kept_as_asked_for(tmp_path, caplog, keep, kept):
    path = tmp_path / "store"
    for _ in range(3):
        run_until_killed(die_after_steps, path, 6, False)
        with damo.EmbeddingStore(path, options=damo.StoreOptions(keep_unclean=keep)) as store:
            assert store.step == 2
        shutil.rmtree(path / "checkpoints" / "step_2")
    assert sorted(p.name for p in path.iterdir()) == ["LOCK", "checkpoints", *kept, "origin.json"]
    assert ("what came after it is removed" in caplog.text) == (keep == 0)


def test_promise_5_rows_without_a_checkpoint_are_kept_and_told_of(tmp_path, caplog):
    path = tmp_path / "store"
    run_until_killed(die_after_steps, path, 6, True)
    shutil.rmtree(path / "checkpoints")
    with damo.EmbeddingStore(path, options=damo.StoreOptions(keep_unclean=0)) as store:
        assert store.step == 0
    assert list((path / "live.unclean-1").glob("*.sst"))
    assert "has no checkpoint: it begins anew" in caplog.text


def test_promise_5_a_clean_store_says_nothing(tmp_path, caplog):
    for _ in range(2):
        with caplog.at_level(logging.WARNING), damo.EmbeddingStore(tmp_path / "store") as store:
            update(collection(store, "t"), {"t": [[1]]})
    assert not [r for r in caplog.records if r.name.startswith("damo_torchrec")]


def test_promise_5_with_restore_none_an_unclean_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "store"
    run_until_killed(die_after_steps, path, 6, False)
    for _ in range(2):
        with pytest.raises(damo.UncleanStoreError, match=r"was not closed; its checkpoints are step_0, step_2\."):
            damo.EmbeddingStore(path, restore=None)
    assert (path / "live").is_dir()
    assert not list(path.glob("live.unclean-*"))
    assert_is_exactly(path, 2)
    with damo.EmbeddingStore(path, restore=None) as store:
        assert store.step == 2


def test_promise_5_an_unclean_store_is_read_as_its_last_checkpoint(tmp_path):
    path = tmp_path / "store"
    run_until_killed(die_after_steps, path, 6, False)
    with damo.EmbeddingStore(path, read_only=True) as store:
        assert store.step == 2
    assert (path / "live").is_dir()
