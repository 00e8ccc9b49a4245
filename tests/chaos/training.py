"""What tests/chaos/program.py kills: training that saves, flushes, prunes, closes and reopens at random places.

And the same training undisturbed, which is what it has to come back to.
"""

import contextlib
import faulthandler
import logging
import random
import shutil
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import damo_torchrec as damo
from chaos.model import STEPS, Digests, Model, rows_digest
from support import A_HANDFUL_OF_ROWS, small_store

HANGS_AFTER = 300  # seconds

# Places in the training where it can be killed, as it tells them.
PHASES = (
    "opening",
    "tidying",
    "reading",
    "loading",
    "updating",
    "deleting",
    "flushing",
    "saving",
    "pruning",
    "closing",
)


# ------------------------------------------------------------------ undisturbed


@dataclass(frozen=True)
class Truth:
    """What holds after a step.

    Args:
        before_deletion: digest of the rows between the step's two parts, where an interrupt may leave them.
        state: of everything at its end.
    """

    before_deletion: str
    state: Digests


def undisturbed(connection: Connection, seed: int) -> None:
    """Answers each step's number with (number, `Truth`), until it gets None."""
    _in_silence_and_order()
    with small_store(seed=seed) as store:
        model = Model(store, seed)
        told = [Truth(rows_digest(store), model.digests())]
        between: dict[str, str] = {}
        while (number := connection.recv()) is not None:
            while len(told) <= number:
                model.step(lambda phase: between.update({phase: rows_digest(store)}))
                told.append(Truth(between["deleting"], model.digests()))
            connection.send((number, told[number]))


# ------------------------------------------------------------------ disturbed


class Training:
    """Trains in the store at `path` from its newest checkpoint with a dense part, up to `STEPS`.

    It tells the connection:

    - ``("phase", phase)`` before it does anything;
    - ``("begun", phase, number)`` and ``("done", phase, number)`` around what makes a checkpoint: ``"saving"`` with a
      dense part, ``"closing"`` of rows only;
    - ``("found", number, digest)``: the rows that the store opened with;
    - ``("loaded", number, digests)``: the state that it goes on from, once anything is sent back; or
      ``("continued", number, digests)`` with the model of before, where it has closed the store in between;
    - ``("leaving",)`` where it is interrupted while the store is open, before it closes it;
    - in the end ``("finished",)``, ``("interrupted",)`` or ``("failed", traceback)``.
    """

    def __init__(self, connection: Connection, path: Path, seed: int, life: int) -> None:
        self._connection = connection
        self._path = path
        self._seed = seed
        self._dice = random.Random(f"{seed} {life}")
        self._model: Model | None = None
        self._closing: int | None = None  # the step at which the store is being closed
        self._saving: tuple[Future[Path], int] | None = None  # a checkpoint, and its step

    def run(self) -> None:
        """Returns when it has trained to the end, or was interrupted."""
        try:
            while self._model is None or self._model.number < STEPS:
                self._train_until_closed()
            self._connection.send(("finished",))
        except KeyboardInterrupt:
            self._connection.send(("interrupted",))
        except Exception:
            self._connection.send(("failed", traceback.format_exc()))

    def _enter(self, phase: str) -> None:
        self._connection.send(("phase", phase))

    def _train_until_closed(self) -> None:
        with self._open() as store:
            self._enter("tidying")
            remove_leftovers(self._path)
            model = self._resume(store)
            while model.number < STEPS and self._disturb(model):
                model.step(self._enter)
            if model.number == STEPS:
                self._save(model)

    @contextlib.contextmanager
    def _open(self) -> Iterator[damo.EmbeddingStore]:
        self._enter("opening")
        options = {
            "num_threads": self._dice.choice([1, 2]),
            "cache_bytes": self._dice.choice([0, A_HANDFUL_OF_ROWS]),
            "direct_io": self._dice.random() < 0.25,
            "keep_checkpoints": None,
        }
        store = small_store(self._path, seed=self._seed, **options)
        self._closing = self._saving = None
        try:
            with store:
                try:
                    yield store
                    self._tell_closing(store)
                except KeyboardInterrupt:  # there is one at most: nothing interrupts what follows
                    if not store.closed:  # as a restore that is interrupted leaves it
                        self._connection.send(("leaving",))
                        self._tell_closing(store)
                    raise
        finally:
            if store.closed and self._closing is not None:
                self._connection.send(("done", "closing", self._closing))

    def _tell_closing(self, store: damo.EmbeddingStore) -> None:
        self._enter("closing")
        self._connection.send(("begun", "closing", store.step))
        self._closing = store.step

    def _resume(self, store: damo.EmbeddingStore) -> Model:
        """The model over the rows of `store`: that of before it was closed, or one that is loaded."""
        if self._model is None:
            model, gone_on = Model(store, self._seed), "loaded"
        else:
            model, gone_on = self._model, "continued"
            model.attach(store)
        self._enter("reading")
        self._connection.send(("found", store.step, rows_digest(store)))
        if self._model is None:
            self._enter("loading")
            load_newest(model)
        self._connection.send((gone_on, model.number, model.digests()))
        self._connection.recv()
        self._model = model
        return model

    def _disturb(self, model: Model) -> bool:
        """Does something or nothing; False if the store shall be closed."""
        self._tell_saved(wait=False)
        roll = self._dice.random()
        if roll < 0.03:
            return False
        if roll < 0.15:
            self._save(model)
        elif roll < 0.22:
            self._enter("flushing")
            model.ebc.store.flush()
        elif roll < 0.29:
            self._enter("pruning")
            if with_dense_part(model.ebc.store):  # else it needs step_0, to begin anew
                model.ebc.store.prune(keep=self._dice.choice([2, 3]))
        return True

    def _save(self, model: Model) -> None:
        self._tell_saved(wait=True)
        self._enter("saving")
        self._connection.send(("begun", "saving", model.number))
        saving = damo.save_model_async(model, optimizer=model.optimizer, extra={"losses": model.losses})
        self._saving = saving, model.number
        self._tell_saved(wait=model.number == STEPS or self._dice.random() < 0.5)

    def _tell_saved(self, wait: bool) -> None:
        """That a checkpoint is complete, if it is. Training goes on while it is written."""
        if self._saving is not None and (wait or self._saving[0].done()):
            (saving, number), self._saving = self._saving, None
            saving.result()
            self._connection.send(("done", "saving", number))


def train(connection: Connection, path: Path, seed: int, life: int) -> None:
    """A process's whole life: see `Training`."""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    _in_silence_and_order()
    Training(connection, path, seed, life).run()


def _in_silence_and_order() -> None:
    """A store that was not closed is nothing to tell here, and one thread adds in one order."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def with_dense_part(store: damo.EmbeddingStore) -> list[Path]:
    """The checkpoints of `save_model`, oldest first. Those of `close` have rows only."""
    return [path for path in store.checkpoints() if (path / "model.pt").is_file()]


def load_newest(model: Model) -> None:
    """Brings everything to the newest checkpoint of `save_model`; without one, to the beginning."""
    complete = with_dense_part(model.ebc.store)
    if complete:
        damo.load_model(complete[-1], model, optimizer=model.optimizer)
        model.losses = damo.checkpoint_info(complete[-1]).extra["losses"]
    elif model.ebc.store.step > 0:
        model.ebc.store.restore(0)


def remove_leftovers(path: Path) -> None:
    """Of earlier lives: rows that the store has set aside."""
    for left in path.glob("live.unclean-*"):
        shutil.rmtree(left)
