"""What becomes of a store that is forked, forgotten, or still open when the interpreter ends."""

import gc
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import collection, look_up, update
from processes import run_program

# ------------------------------------------------------------------ a program of its own


def program(directory: Path) -> None:
    """Trains, forks, and ends without closing anything. Prints what the tests look at."""
    report: dict[str, object] = {}
    store = damo.EmbeddingStore(directory / "forked", options=damo.StoreOptions(num_threads=2))
    ebc = collection(store, "t", initial=0.0)
    update(ebc, {"t": [[1], [2]]})
    report["answers in the child"] = in_child(lambda: calls_that_answer(store, ebc), os._exit)[0]
    report["status of a child that runs what runs at exit"] = in_child(list, sys.exit)[1]
    update(ebc, {"t": [[1], [3]]})
    report["step after the child"] = store.step
    store.checkpoint()

    release, hold = os.pipe()
    child = os.fork()
    if child == 0:  # lives on, as a data loader's worker does
        os.close(hold)
        os.read(release, 1)
        os._exit(0)
    store.close()
    try:
        store = damo.EmbeddingStore(directory / "forked")
        report["opened while a child lives"] = True
    except damo.StoreLockedError:
        report["opened while a child lives"] = False
    os.close(hold)
    os.waitpid(child, 0)

    forgotten = damo.EmbeddingStore(directory / "forgotten")
    update(collection(forgotten, "t", initial=0.0), {"t": [[7]]})
    update(collection(None, "u"), {"u": [[1]]})
    report["temporary"] = str(damo.default_store().path)
    sys.stdout.write(json.dumps(report))


def in_child(work: Callable[[], list[str]], leave: Callable[[int], object]) -> tuple[list[str], int]:
    """What `work` returns in a forked child, and the status with which that ends."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # should it wait for ever
        with os.fdopen(theirs, "w") as pipe:
            json.dump(work(), pipe)
        gc.collect()
        leave(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text), status


def calls_that_answer(store: damo.EmbeddingStore, ebc: damo.EmbeddingBagCollection) -> list[str]:
    """The calls that do not raise StoreClosedError."""
    table = store.table("t")
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: look_up(ebc, {"t": [[1]]}),
        "get": lambda: table.get([1]),
        "contains": lambda: table.contains([1]),
        "set": lambda: table.set([1], torch.ones(1, 4)),
        "delete": lambda: table.delete([1]),
        "items": lambda: next(table.items()),
        "len": lambda: len(table),
        "iter": lambda: table.iter,
        "step": lambda: store.step,
        "stats": store.stats,
        "flush": store.flush,
        "checkpoint": store.checkpoint,
        "restore": store.restore,
        "open a table": lambda: collection(store, "new"),
        "save_model": lambda: damo.save_model(ebc),
    }
    answering = []
    for name, call in calls.items():
        try:
            call()
        except damo.StoreClosedError:
            continue
        except Exception as error:
            name = f"{name}: {type(error).__name__}"
        answering.append(name)
    store.close()  # does nothing
    return answering


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, dict[str, object]]:
    directory = tmp_path_factory.mktemp("program")
    result = run_program(program, directory)
    assert "Exception ignored" not in result.stderr, result.stderr
    return directory, json.loads(result.stdout)


def test_after_a_fork_every_call_in_the_child_raises(ended):
    assert ended[1]["answers in the child"] == []


def test_a_child_ends_as_any_program(ended):
    assert ended[1]["status of a child that runs what runs at exit"] == 0


def test_a_childs_end_harms_nothing(ended):
    directory, report = ended
    assert report["step after the child"] == 2
    with damo.EmbeddingStore(directory / "forked", restore=None) as store:
        collection(store, "t", initial=0.0)
        assert store.step == 2
        assert store.table("t").get([1, 2, 3])[:, 0].tolist() == [-2.0, -1.0, -1.0]


def test_a_closed_store_is_opened_again_while_a_child_lives(ended):
    assert ended[1]["opened while a child lives"] is True


def test_the_end_of_the_interpreter_closes_stores(ended):
    directory, report = ended
    with damo.EmbeddingStore(directory / "forgotten", restore=None) as store:
        collection(store, "t", initial=0.0)
        assert store.step == 1
        assert store.table("t").get([7])[0, 0] == -1.0
    assert not Path(report["temporary"]).exists()


# ------------------------------------------------------------------ garbage


def forget(path: Path | None) -> Path:
    """Trains one step in a store that nobody holds afterwards."""
    store = damo.EmbeddingStore(path)
    update(collection(store, "t", initial=0.0), {"t": [[1]]})
    return store.path


def is_as_it_was_left(path: Path) -> bool:
    with damo.EmbeddingStore(path, restore=None) as store:
        collection(store, "t", initial=0.0)
        return store.step == 1 and store.table("t").get([1])[0, 0].item() == -1.0


def test_a_store_that_is_forgotten_warns_and_loses_nothing(tmp_path):
    forget(tmp_path / "store")
    with pytest.warns(ResourceWarning, match=rf"the store {tmp_path / 'store'} was not closed"):
        gc.collect()
    assert is_as_it_was_left(tmp_path / "store")


def test_a_store_that_is_forgotten_where_warnings_are_errors_loses_nothing(tmp_path, monkeypatch):
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.exc_value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forget(tmp_path / "store")
        gc.collect()
    assert [type(error) for error in raised] == [ResourceWarning]
    assert is_as_it_was_left(tmp_path / "store")


def test_a_store_that_is_forgotten_stays_open_for_who_has_a_table_of_it(tmp_path):
    store = damo.EmbeddingStore(tmp_path / "store")
    update(collection(store, "t", initial=0.0), {"t": [[1]]})
    table = store.table("t")
    assert table == store.table("t")
    del store
    gc.collect()
    assert table.get([1])[0, 0].item() == -1.0
    with pytest.warns(ResourceWarning, match="was not closed"):
        del table
    assert is_as_it_was_left(tmp_path / "store")


def test_a_temporary_store_that_is_forgotten_is_removed_without_a_word(caplog):
    with caplog.at_level(logging.WARNING, logger="damo_torchrec"):
        path = forget(None)
        gc.collect()
    assert not path.exists()
    assert not [r for r in caplog.records if r.name.startswith("damo_torchrec")]


# ------------------------------------------------------------------ interrupted


class InterruptedOnceClosed:
    """An engine; Ctrl-C comes while it closes, and Python raises it after that."""

    def __init__(self, engine: object) -> None:
        self._engine = engine
        self._interrupts = [KeyboardInterrupt]

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        self._engine.close()
        while self._interrupts:
            raise self._interrupts.pop()


def test_a_store_that_is_interrupted_while_it_closes_loses_nothing_and_is_opened_again(tmp_path):
    store = damo.EmbeddingStore(tmp_path / "store")
    update(collection(store, "t"), {"t": [[1]]})
    store.session._core = InterruptedOnceClosed(store.session._core)
    table = store.table("t")
    with pytest.raises(KeyboardInterrupt):
        store.close()
    assert not store.closed
    for call in (store.flush, store.checkpoint, store.stats, lambda: table.get([1]), lambda: table.delete([1])):
        with pytest.raises(damo.StoreClosedError, match=r"close\(\) .* was interrupted: call close\(\) again"):
            call()
    store.close()
    assert store.closed
    with damo.EmbeddingStore(tmp_path / "store") as again:
        assert again.step == 1
