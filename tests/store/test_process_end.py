"""Processes that end, or stores that are closed, at an awkward moment: nothing hangs, and nothing aborts."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

import damo_torchrec as damo
from mixed_run import collection, look_up, update
from processes import run_program
from support import kjt


def closed_well(path: Path) -> bool:
    with damo.EmbeddingStore(path, memory_budget="64MiB", restore=None) as store:
        return store.step > 0


# ------------------------------------------------------------------ daemon threads


def main_ends_before_its_threads(directory: Path) -> None:
    store = damo.EmbeddingStore(directory / "store", memory_budget="64MiB")
    ebc = collection(store, "t")
    ids = {"t": [[i] for i in range(500)]}
    update(ebc, ids)
    calls: list[Callable[[], object]] = [
        lambda: update(ebc, ids),
        lambda: look_up(ebc, ids),
        lambda: ebc.prefetch(kjt(ids)),
        lambda: list(store.table("t").items(batch_size=7)),
        lambda: store.table("t").get(range(2000)),
        lambda: store.checkpoint_async().result(),
        store.stats,
    ]
    begun = threading.Barrier(len(calls) + 1)

    def repeat(call: Callable[[], object]) -> None:
        begun.wait()
        try:
            while True:
                call()
        except damo.DamoError:
            pass

    for call in calls:
        threading.Thread(target=repeat, args=(call,), daemon=True).start()
    begun.wait()
    while store.step < 20:
        store.table("t").get([1])


@pytest.mark.parametrize("attempt", range(2))
def test_daemon_threads_may_be_at_work_when_main_ends(tmp_path, attempt):
    assert "terminate called" not in run_program(main_ends_before_its_threads, tmp_path).stderr
    assert closed_well(tmp_path / "store")


# ------------------------------------------------------------------ closed from odd places


class Holder:
    """Closes what it holds when it goes."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        self.store = store
        self.itself = self  # for the garbage collector

    def __del__(self) -> None:
        self.store.close()


def closes_from_everywhere(directory: Path) -> None:
    def trained(name: str) -> damo.EmbeddingStore:
        store = damo.EmbeddingStore(directory / name, memory_budget="64MiB")
        update(collection(store, "t"), {"t": [[1], [2]]})
        return store

    report = {}
    store = trained("finalizer")
    Holder(store)
    gc.collect()
    report["finalizer"] = store.closed

    store, held = trained("weak reference"), Holder.__new__(Holder)
    held.store = store
    weakref.finalize(held, store.close)
    del held
    report["weak reference"] = store.closed

    store = trained("collector")
    store.checkpoint_async()
    gc.callbacks.append(lambda *_: store.close())
    gc.collect()
    gc.callbacks.pop()
    store.close()
    report["collector"] = store.closed

    store = trained("signal")
    signal.signal(signal.SIGUSR1, lambda *_: store.close())
    os.kill(os.getpid(), signal.SIGUSR1)
    report["signal"] = store.closed

    forked = trained("forked")
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with forked.session.mutex:
            forked.close()
        sys.exit()
    report["forked"] = os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if child == 0:
        os._exit(3)
    os.waitpid(child, 0)
    forked.close()

    at_exit = trained("at exit")
    atexit.register(at_exit.close)
    asynchronous = trained("asynchronous at exit")
    atexit.register(lambda: asynchronous.checkpoint_async().result())
    trained("never")
    sys.stdout.write(json.dumps(report))


def test_close_may_be_called_from_everywhere(tmp_path):
    report = json.loads(run_program(closes_from_everywhere, tmp_path).stdout)
    assert report == dict.fromkeys(["finalizer", "weak reference", "collector", "signal", "forked"], True)
    for name in (*report, "at exit", "asynchronous at exit", "never"):
        assert closed_well(tmp_path / name), name


def test_a_handler_that_comes_in_the_middle_of_a_call_is_told_so(tmp_path, monkeypatch):
    """It would find a checkpoint begun, for whose end it would wait for ever."""
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        update(collection(store, "t"), {"t": [[1]]})
        table = store.table("t")
        manifest = store.session.catalog.new_manifest
        errors: list[str] = []

        def interrupted(*arguments: object) -> object:
            calls: list[Callable[[], object]] = [store.close, store.flush, store.checkpoint, store.restore]
            for call in [*calls, lambda: table.delete([1]), lambda: next(table.items())]:
                with pytest.raises(damo.DamoError, match="in the middle of another call") as raised:
                    call()
                errors.append(str(raised.value))
            return manifest(*arguments)

        monkeypatch.setattr(store.session.catalog, "new_manifest", interrupted)
        store.checkpoint_async().result()
        store.checkpoint(tmp_path / "other")
        assert len(errors) == 12
        monkeypatch.undo()
        assert len(table) == 1
