"""One store in several threads, and in a data loader's workers that inherit it."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import damo_torchrec as damo
from mixed_run import collection, look_up, update
from processes import run
from support import A_HANDFUL_OF_ROWS, kjt

IDS = list(range(-20, 20))
THREADS, OPERATIONS = 4, 250


def open_store(path: Path, **arguments: object) -> damo.EmbeddingStore:
    options = damo.StoreOptions(num_threads=2, cache_bytes=A_HANDFUL_OF_ROWS)
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **arguments)


def rows_are_of_one_instant(table: damo.Table) -> int:
    """Every update takes 1 from every weight: returns how many these rows have had."""
    batches = list(table.items(batch_size=7))
    if not batches:
        return 0
    assert torch.cat([ids for ids, _ in batches]).tolist() == IDS
    (value,) = torch.cat([weights for _, weights in batches]).unique().tolist()
    return int(-value)


class Thread(threading.Thread):
    """Trains a table of its own, and reads and saves those of all."""

    def __init__(self, store: damo.EmbeddingStore, number: int) -> None:
        super().__init__(daemon=True)
        self.store, self.number = store, number
        self.random = random.Random(number)
        self.ebc = collection(store, f"t{number}", dim=16, initial=0.0)
        self.updates = 0
        self.checkpoints: list[Path] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        kinds: list[Callable[[], object]] = [
            *[self.train] * 6, self.get, self.items, self.store.stats, self.store.flush, self.evaluate, self.prefetch
        ]  # fmt: skip
        try:
            for i in range(OPERATIONS):
                self.random.choice(kinds)()
                if i % 50 == self.number:
                    self.checkpoint()
        except BaseException as error:
            self.error = error

    def train(self) -> None:
        update(self.ebc.train(), {f"t{self.number}": [[i] for i in IDS]})
        self.updates += 1

    def get(self) -> None:
        weights = self.any_table().get(IDS)
        assert len(weights.unique()) == 1

    def items(self) -> None:
        table = self.any_table()
        before = table.iter
        assert before <= rows_are_of_one_instant(table) <= table.iter

    def evaluate(self) -> None:
        weights = look_up(self.ebc.eval(), {f"t{self.number}": [[i] for i in IDS]})
        assert weights.unique().tolist() == [-float(self.updates)]

    def prefetch(self) -> None:
        self.ebc.prefetch(kjt({f"t{self.number}": [[self.random.randrange(100)]]}))

    def checkpoint(self) -> None:
        self.checkpoints.append(self.store.checkpoint(self.store.path.parent / f"{self.number}-{self.updates}"))

    def any_table(self) -> damo.Table:
        return self.store.table(f"t{self.random.randrange(THREADS)}")


def test_threads_share_a_store_without_an_error_or_a_wrong_row(tmp_path):
    with open_store(tmp_path / "store") as store:
        threads = [Thread(store, number) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [thread.error for thread in threads] == [None] * THREADS
    checkpoints = [path for thread in threads for path in thread.checkpoints]
    for path in [tmp_path / "store", *checkpoints]:
        with open_store(path, read_only=True) as store:
            collection(store, *damo.checkpoint_info(path).rows, dim=16, initial=0.0)
            for table in store.tables().values():
                assert rows_are_of_one_instant(table) == table.iter
            if path == tmp_path / "store":
                assert [t.iter for t in store.tables().values()] == [thread.updates for thread in threads]


# ------------------------------------------------------------------ a data loader's workers


class Numbers(Dataset):
    """Ids, from workers that hold a store which they were forked with."""

    def __init__(self, store: damo.EmbeddingStore, use: bool) -> None:
        self.store, self.use = store, use

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> int:
        if self.use:
            self.store.table("t").get([i])
        return i


def train_from_workers(path: Path) -> None:
    with open_store(path) as store:
        ebc = collection(store, "t", initial=0.0)
        update(ebc, {"t": [[1000]]})
        for _ in range(2):
            for ids in DataLoader(Numbers(store, False), 4, num_workers=2, multiprocessing_context="fork"):
                update(ebc, {"t": [[int(i)] for i in ids]})
        assert store.step == 21


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_inherit_a_store_leave_it_alone(tmp_path):
    run(train_from_workers, tmp_path / "store")
    with open_store(tmp_path / "store", restore=None) as store:
        collection(store, "t", initial=0.0)
        assert store.step == 21
        assert store.table("t").get(range(40))[:, 0].tolist() == [-2.0] * 40


def use_in_a_worker(path: Path) -> tuple[str, int]:
    with open_store(path) as store:
        ebc = collection(store, "t", initial=0.0)
        update(ebc, {"t": [[1]]})
        with pytest.raises(damo.StoreClosedError) as raised:
            list(DataLoader(Numbers(store, True), 4, num_workers=2, multiprocessing_context="fork"))
        update(ebc, {"t": [[1]]})
        assert store.table("t").get([1])[0, 0] == -2.0
        return str(raised.value), os.getpid()


def test_a_worker_that_uses_a_store_it_has_inherited_is_told_whose_it_is(tmp_path):
    message, process = run(use_in_a_worker, tmp_path / "store")
    assert f"belongs to process {process}, which opened it: its child, process " in message
    assert "cannot use it after a fork" in message
