"""What an interrupt leaves behind: Ctrl-C and SIGTERM at any instant, and exceptions in the user's code."""

import contextlib
import gc
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Container, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import settings

import damo_torchrec as damo
from damo_torchrec.checkpoints.atomic_directory import build_directory, remove_directory
from damo_torchrec.files import os_errors
from mixed_run import Rows, assert_same_rows, collection, rows_of
from processes import started
from support import A_HANDFUL_OF_ROWS, directory_in_memory, random_kjt, small_store

# An interrupt between open() or scandir() and the beginning of its `with` leaves it to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed scandir iterator:ResourceWarning"),
]

PACKAGE = str(Path(damo.__file__).parent)
STRIDE = max(1, 400 // settings.default.max_examples)  # of lines to interrupt, where each takes long


class Training:
    """A collection of two tables, and updates of which each is a function of the number of those before."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        self.store = store
        self.ebc = collection(store, "a", "b", optimizer=torch.optim.Adam, lr=0.1)

    def step(self) -> None:
        generator = torch.Generator().manual_seed(self.store.step)
        output = self.ebc(random_kjt(generator, ["a", "b"], 16, 200)).values()
        output.backward(torch.randn(output.shape, generator=generator))


class Undisturbed:
    """The rows after each number of updates."""

    def __init__(self) -> None:
        self.training = Training(small_store())
        self.rows = [rows_of(self.training.store)]

    def after(self, steps: int) -> Rows:
        while len(self.rows) <= steps:
            self.training.step()
            self.rows.append(rows_of(self.training.store))
        return self.rows[steps]

    def check(self, store: damo.EmbeddingStore) -> None:
        """Asserts that the store has the rows of a whole number of updates: as many as it says."""
        assert_same_rows(rows_of(store), self.after(store.step))


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed()


def open_store(path: Path, **arguments: Any) -> damo.EmbeddingStore:
    options = damo.StoreOptions(num_threads=2, cache_bytes=A_HANDFUL_OF_ROWS)
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **arguments)


# ------------------------------------------------------------------ an interrupt before each line of the package


class InterruptedAt:
    """Raises KeyboardInterrupt before the n-th line of the package that runs here: a signal comes between lines.

    Not in what the garbage collector calls: there Python swallows exceptions, and 3.11 crashes if a tracer raises them.
    """

    def __init__(self, n: int) -> None:
        self.lines = n

    def __enter__(self) -> None:
        gc.disable()
        sys.settrace(self._called)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        sys.settrace(None)
        gc.enable()
        return kind is KeyboardInterrupt

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        return self._at if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _at(self, _: FrameType, event: str, __: object) -> Any:
        self.lines -= event == "line"
        if self.lines == 0:
            self.lines = -1
            raise KeyboardInterrupt
        return self._at

    @property
    def came(self) -> bool:
        return self.lines < 0


def every_line(stride: int = 1) -> Iterator[InterruptedAt]:
    """Interrupts at all lines in turn, or at every `stride`-th, until one comes too late."""
    interrupt = InterruptedAt(1)
    n = 1
    while True:
        yield interrupt
        if not interrupt.came:
            break
        n += stride
        interrupt = InterruptedAt(n)
    assert n > 4 * stride, "nothing of the package has run"


def remove_checkpoints(path: Path, keep: Container[str]) -> None:
    """More of them are more lines in each round."""
    for checkpoint in (path / "checkpoints").iterdir():
        if checkpoint.name not in keep:
            shutil.rmtree(checkpoint)


@pytest.fixture
def directory() -> Iterator[Path]:
    with directory_in_memory() as directory:
        yield directory


def test_an_interrupted_update_is_one_of_all_tables_or_of_none(directory, undisturbed):
    done = 0
    with open_store(directory / "store") as store:
        training = Training(store)
        for interrupt in every_line():
            before = store.step
            with interrupt:
                training.step()
            undisturbed.check(store)
            done += store.step - before
        assert store.step == done > 1
    with open_store(directory / "store", restore=None) as store:
        Training(store)
        assert store.step == done
        undisturbed.check(store)


def test_of_an_interrupted_directory_nothing_is_left(directory):
    for interrupt in every_line():
        with interrupt:
            build_directory(directory / "made", "checkpoint", lambda staged: (staged / "file").touch())
        assert {path.name for path in directory.iterdir()} <= {"made"}
        if (directory / "made").exists():
            remove_directory(directory / "made", "checkpoint")


@pytest.mark.slow
def test_an_interrupted_checkpoint_leaves_the_store_as_it_was(directory, undisturbed):
    with open_store(directory / "store") as store:
        training = Training(store)
        for interrupt in every_line(STRIDE):
            training.step()
            with interrupt:
                store.checkpoint()
            assert not list((store.path / "checkpoints").glob(".*")), "an unfinished checkpoint was left"
            undisturbed.check(store)
            remove_checkpoints(store.path, keep=["step_0"])
        steps = store.step
        training.step()
    with open_store(directory / "store", restore=None) as store:
        Training(store)
        assert store.step == steps + 1
        undisturbed.check(store)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_close_is_finished_by_the_next(directory, undisturbed, changed):
    steps = 0
    for interrupt in every_line(STRIDE if changed else 1):
        store = open_store(directory / "store", restore=None)
        assert store.step == steps
        training = Training(store)
        if changed or steps == 0:
            training.step()
        steps = store.step
        if not changed:
            store.checkpoint()
        with interrupt:
            store.close()
        store.close()
        assert store.closed
        with open_store(directory / "store", restore=None) as store:
            Training(store)
            assert store.step == steps
            undisturbed.check(store)
        remove_checkpoints(store.path, keep=[f"step_{steps}"])


@pytest.mark.slow
def test_an_interrupted_restore_leaves_the_rows_of_before_or_of_a_checkpoint(directory, undisturbed, caplog):
    path = directory / "store"
    with open_store(path) as store:
        for _ in range(2):
            Training(store).step()
            store.checkpoint()
    seen = set()
    for interrupt in every_line(STRIDE):
        store = open_store(path, restore="step_2")
        training = Training(store)
        training.step()
        with interrupt:
            store.restore("step_1")
        if store.closed:
            store = open_store(path, restore="step_2")
            Training(store)
            seen.add("closed")
        seen.add(store.step)
        undisturbed.check(store)
        store.close()
        remove_checkpoints(path, keep=["step_1", "step_2"])
    assert seen >= {1, 2, 3, "closed"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the store .* was not closed:ResourceWarning")  # one that nobody has got
def test_after_an_interrupted_opening_the_store_opens(directory, undisturbed):
    path = directory / "store"
    with open_store(path) as store:
        Training(store).step()
    for interrupt in every_line(STRIDE):
        opened = []
        with interrupt:
            opened.append(open_store(path))
        for store in opened:
            store.close()
        with open_store(path) as store:
            assert store.step == 1
            Training(store)
            undisturbed.check(store)


# ------------------------------------------------------------------ signals


def leave(*_: object) -> None:
    sys.exit("told to")


def train_until_interrupted(connection: Connection, path: Path, rounds: int) -> None:
    """Says what has ended each round of training, and how many updates there were."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, leave)
    for _ in range(rounds):
        try:
            with open_store(path, restore=None) as store:
                training = Training(store)
                connection.send("training")
                while True:
                    training.step()
        except (KeyboardInterrupt, SystemExit) as error:
            ended = type(error).__name__
        connection.send((ended, store.closed))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exception"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "SystemExit")]
)
def test_a_signal_that_raises_closes_the_store(directory, undisturbed, number, exception):
    """Each round opens with restore=None, which refuses a store that was not closed."""
    path, rounds = directory / "store", 12
    instants = random.Random(number)
    with started(train_until_interrupted, path, rounds) as (process, connection):
        for _ in range(rounds):
            assert connection.recv() == "training"
            time.sleep(instants.uniform(0, 0.02))
            os.kill(process, number)
            assert connection.recv() == (exception, True)
    with open_store(path, restore=None) as store:
        Training(store)
        assert store.step > 0
        undisturbed.check(store)


def train_with_a_checkpoint(connection: Connection, path: Path) -> None:
    store = open_store(path)
    training = Training(store)
    for _ in range(3):
        training.step()
    store.checkpoint()
    connection.send("training")
    while True:
        training.step()


def test_a_signal_that_kills_leaves_the_last_checkpoint(directory, undisturbed, caplog):
    path = directory / "store"
    with started(train_with_a_checkpoint, path) as (process, connection):
        assert connection.recv() == "training"
        os.kill(process, signal.SIGTERM)
        with pytest.raises(EOFError):
            connection.recv()
    with caplog.at_level(logging.WARNING), open_store(path) as store:
        Training(store)
        assert store.step == 3
        undisturbed.check(store)
    assert "was not closed: it goes back to step_3" in caplog.text


# ------------------------------------------------------------------ exceptions in the user's code


class MyError(Exception):
    pass


def fail(*_: object) -> None:
    raise MyError


def in_the_loop(training: Training) -> None:
    fail()


def in_a_hook_before_the_update(training: Training) -> None:
    output = training.ebc(random_kjt(torch.Generator(), ["a", "b"], 16, 200)).values()
    output.register_hook(fail)
    output.sum().backward()


def in_a_hook_of_another_tensor(training: Training) -> None:
    """Whether the update has happened by then is autograd's to choose; that it is whole is not."""
    weight = torch.ones(1, requires_grad=True)
    weight.register_hook(fail)
    (training.ebc(random_kjt(torch.Generator(), ["a", "b"], 16, 200)).values().sum() * 0.0 + weight).backward()


@pytest.mark.parametrize("where", [in_the_loop, in_a_hook_before_the_update])
def test_an_exception_closes_the_store_and_loses_nothing(tmp_path, undisturbed, where: Callable[[Training], None]):
    store = open_store(tmp_path / "store")
    training = Training(store)
    training.step()
    training.step()
    with pytest.raises(MyError), store:
        where(training)
    assert store.closed
    with open_store(tmp_path / "store", restore=None) as store:
        training = Training(store)
        assert store.step == 2
        undisturbed.check(store)
        training.step()
        undisturbed.check(store)


def test_an_exception_beside_an_update_leaves_it_whole(tmp_path):
    with open_store(tmp_path / "store") as store:
        training = Training(store)
        with contextlib.suppress(MyError):
            in_a_hook_of_another_tensor(training)
        a, b = (store.table(name) for name in ("a", "b"))
        assert (a.iter, b.iter) in ((0, 0), (1, 1))
        assert (len(a) > 0) == (len(b) > 0) == (a.iter == 1)


def test_an_interrupt_while_a_directory_is_removed_stays_one(tmp_path, monkeypatch):
    """Python 3.11 closes the descriptor again, which fails."""
    (tmp_path / "live" / "rows").mkdir(parents=True)
    close = os.close

    def interrupted(descriptor: int) -> None:
        monkeypatch.setattr(os, "close", close)
        close(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "close", interrupted)
    with pytest.raises(KeyboardInterrupt), os_errors("cannot remove"):
        shutil.rmtree(tmp_path / "live")
