"""`damo_torchrec.progress`, and who is told of what."""

import io
from types import SimpleNamespace

import pytest
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import progress as module
from damo_torchrec.cli import main as cli
from damo_torchrec.progress import ProgressBar, counting, reporting, watching
from mixed_run import collection
from support import kjt, needs_onnxruntime, small_store


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as stderr, where bars are drawn at once."""
    monkeypatch.setattr(module, "_SHOWN_AFTER", 0)
    monkeypatch.setattr(module, "_SHOWN_EVERY", 0)
    monkeypatch.setenv("COLUMNS", "400")
    stderr = Terminal()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr))  # pytest has sys.stderr for itself
    return stderr


def test_a_bar_is_drawn_on_a_terminal_and_taken_away(terminal):
    with ProgressBar() as bar:
        bar("rows of x", 0, 4000)
        bar("rows of x", 1000, 4000)
        assert "rows of x:  25%|" in terminal.getvalue()
        assert "1.00k of 4.00k [" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_nothing_is_drawn_elsewhere_nor_of_what_is_soon_done(monkeypatch):
    monkeypatch.setattr(module, "_SHOWN_AFTER", 1e9)
    for stream in (io.StringIO(), Terminal(), None):
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stream))
        with ProgressBar() as bar:
            bar("rows of x", 1, 2)
        assert not stream or stream.getvalue() == ""


def test_a_narrow_terminal_has_room_for_the_figures(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressBar() as bar:
        bar(f"rows of /{'x' * 100}/step_7", 1000, 4000)
    drawn = terminal.getvalue().split("\x1b[K")[1].strip()
    assert len(drawn) < 80
    assert drawn.startswith("rows of /...x")
    assert "/step_7:  25%|" in drawn
    assert "1.00k of 4.00k [" in drawn


def test_nothing_to_do_is_drawn_as_well(terminal):
    with ProgressBar() as bar:
        bar("rows of x", 0, 0)
    assert "rows of x" in terminal.getvalue()


def test_a_terminal_that_is_gone_stops_nothing(terminal):
    with ProgressBar() as bar:
        bar("rows of x", 1, 2)
        terminal.close()
        with pytest.raises(ValueError, match="closed"):
            terminal.write("x")
        bar("rows of x", 2, 2)


def test_an_operation_goes_on_if_a_callback_fails(caplog):
    told = []

    def tell(*figures: object) -> None:
        told.append(figures)
        raise RuntimeError("not now")

    with reporting(tell) as progress:
        progress("rows of x", 1, 2)
        progress("rows of x", 2, 2)
    assert told == [("rows of x", 1, 2)]
    assert "the progress callback failed" in caplog.text
    assert "not now" in caplog.text


def test_an_interrupt_in_a_callback_comes_out():
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with reporting(interrupted) as progress, pytest.raises(KeyboardInterrupt):
        progress("rows of x", 1, 2)


def test_counts_do_not_exceed_their_total():
    told = []
    add = counting(lambda *figures: told.append(figures), "rows of x", 5)
    for n in (2, 2, 2):
        add(n)
    assert told == [("rows of x", 2, 5), ("rows of x", 4, 5), ("rows of x", 5, 5)]


def test_a_long_call_is_watched_from_a_thread(monkeypatch):
    monkeypatch.setattr(module, "_MEASURED_EVERY", 0)
    measures = iter([3, 70, *[200] * 1_000_000])
    told = []
    done = module.threading.Event()

    def tell(*figures: object) -> None:
        told.append(figures)
        if figures[1] == 100:
            done.set()

    with watching(tell, "bytes of x", 100, lambda: next(measures)):
        assert done.wait(60)
    count = len(told)
    assert told[:3] == [("bytes of x", 3, 100), ("bytes of x", 70, 100), ("bytes of x", 100, 100)]
    assert len(told) == count, "told once the call was over"


def test_a_long_call_goes_on_where_there_can_be_no_thread(monkeypatch):
    def refused(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(module.threading.Thread, "start", refused)
    with watching(lambda *_: pytest.fail("told"), "bytes of x", 100, lambda: 0):
        pass


# ---------------------------------------------------------------- who is told


def torchrec_model(store: damo.EmbeddingStore) -> torch.nn.Module:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ebc = collection(store, "t")

        def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
            return self.ebc(features).values()

    return Model()


def test_closing_tells_how_many_of_the_changed_rows_are_written(tmp_path):
    told = []
    store = small_store(tmp_path / "store", progress=lambda *figures: told.append(figures))
    collection(store, "t")
    for first in range(0, 400_000, 20_000):
        store.table("t").set(torch.arange(first, first + 20_000), torch.ones(20_000, 4))
    store.close()
    done = [figures[1] for figures in told]
    totals = {figures[2] for figures in told}
    assert {figures[0] for figures in told} == {f"changed rows of {tmp_path / 'store'}"}
    assert done == sorted(set(done))
    assert len(done) > 2
    assert totals == {done[-1]}
    with small_store(tmp_path / "store") as again:
        collection(again, "t")
        assert len(again.table("t")) == 400_000


def test_a_bar_shows_how_far_closing_is(tmp_path, terminal):
    store = small_store(tmp_path / "store")
    collection(store, "t")
    store.table("t").set(range(1000), torch.ones(1000, 4))
    store.close()
    assert f"changed rows of {tmp_path / 'store'}: 100%|" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_no_bar_if_nobody_wants_one(tmp_path, terminal):
    with small_store(tmp_path / "store", progress=False) as store:
        collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
    assert terminal.getvalue() == ""


def test_a_callback_that_fails_loses_no_row(tmp_path):
    def fail(*_: object) -> None:
        raise RuntimeError("not now")

    with small_store(tmp_path / "store", progress=fail) as store:
        collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
    with small_store(tmp_path / "store") as again:
        collection(again, "t")
        assert len(again.table("t")) == 1000


def test_a_callback_may_ask_the_store_that_closes(tmp_path):
    seen = []
    store = small_store(tmp_path / "store", progress=lambda *_: seen.append(len(store.table("t"))))
    collection(store, "t")
    store.table("t").set(range(1000), torch.ones(1000, 4))
    store.close()
    assert set(seen) == {1000}


def test_an_opening_with_a_journal_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MEASURED_EVERY", 0)
    with small_store(tmp_path / "store") as store:
        collection(store, "t")
        for first in range(0, 400_000, 20_000):
            store.table("t").set(torch.arange(first, first + 20_000), torch.ones(20_000, 4))
        checkpoint = store.checkpoint(tmp_path / "checkpoint")
    told = []
    options = damo.StoreOptions(num_threads=2, progress=lambda *figures: told.append(figures))
    for path, how in ((tmp_path / "other", {"restore": checkpoint}), (checkpoint, {"read_only": True})):
        told.clear()
        with damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **how) as store:
            collection(store, "t")
            assert len(store.table("t")) == 400_000
        opening = [figures for figures in told if figures[0] == f"bytes of the journal of {checkpoint}"]
        assert opening
        assert all(0 <= done <= total for _, done, total in opening)


def test_a_delta_tells_of_its_tables(tmp_path):
    told = []
    with small_store(tmp_path / "store", progress=lambda *figures: told.append(figures)) as store:
        collection(store, "t")
        store.checkpoint()
        store.table("t").set(range(10), torch.ones(10, 4))
        store.export_delta(tmp_path / "delta", since=0)
        assert told[-1] == (f"tables of {tmp_path / 'delta'}", 1, 1)


@needs_onnxruntime
@pytest.mark.parametrize("of_the_call", [True, False])
def test_an_export_tells_of_its_rows(tmp_path, of_the_call):
    told, others = [], []
    with small_store(tmp_path / "store", progress=lambda *figures: others.append(figures)) as store:
        model = torchrec_model(store)
        store.table("t").set(range(1000), torch.ones(1000, 4))
        how = {"progress": lambda *figures: told.append(figures)} if of_the_call else {}
        damo.onnx.export(model, (kjt({"t": [[1]]}),), tmp_path / "model", **how)
    exported = told if of_the_call else [figures for figures in others if figures[0].startswith("rows exported")]
    assert exported[-1] == (f"rows exported to {tmp_path / 'model'}", 1000, 1000)


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_the_tool_shows_a_bar(command, tmp_path, terminal):
    with small_store(tmp_path / "store", progress=False) as store:
        collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
        checkpoint = store.checkpoint(tmp_path / "checkpoint")
    arguments = [command, str(checkpoint)] + ([str(tmp_path / "out")] if command == "repair" else [])
    assert cli.main(arguments) == 0
    assert f"rows of {checkpoint}: 100%|" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("progress", [None, "bar", 1])
def test_progress_has_to_be_something_to_tell(progress):
    with pytest.raises(TypeError, match="progress must be a function of"):
        damo.StoreOptions(progress=progress)
