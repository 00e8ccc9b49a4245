"""Full disks on every way to the disk."""

import errno
import itertools
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import SmallModel, assert_same_rows, collection, rows_of, update
from processes import run
from support import A_HANDFUL_OF_ROWS, payloads

DIM = 256


def open_store(path: Path | None, **arguments: object) -> damo.EmbeddingStore:
    options = damo.StoreOptions(
        num_threads=2, cache_bytes=A_HANDFUL_OF_ROWS, backend="memory" if path is None else "rocksdb"
    )
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **arguments)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A process whose files cannot grow: what it writes beyond raises EFBIG, as a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def step(model: SmallModel) -> None:
    """Some kilobytes of rows, which are a function of the number of updates."""
    n = model.ebc.store.step
    update(model.ebc, {"t": [[i] for i in range(50 * n, 50 * n + 200)]}, gradient=n + 1.0)


def undisturbed(steps: int) -> dict[int, bytes]:
    with open_store(None) as store:
        model = SmallModel(store)
        for _ in range(steps):
            step(model)
        return payloads(store, "t")


def leftovers(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "checkpoints").iterdir() if p.name.startswith("."))


# ------------------------------------------------------------------ a full disk under an open store


WRITES: dict[str, Callable[[damo.EmbeddingStore, SmallModel], object]] = {
    "checkpoint": lambda store, _: store.checkpoint(),
    "checkpoint elsewhere": lambda store, _: store.checkpoint(store.path.parent / "own"),
    "save_model": lambda _, model: damo.save_model(model, optimizer=model.optimizer),
    "close": lambda store, _: store.close(),
    "restore": lambda store, _: store.restore("step_1"),
    "load_model": lambda store, model: damo.load_model(store.path / "checkpoints" / "step_1", model),
}


def write_to_a_full_disk(path: Path, what: str) -> None:
    with open_store(path) as store:
        model = SmallModel(store)
        step(model)
        damo.save_model(model)
        step(model)
        before = rows_of(store)
        with files_of_at_most(0):
            # Rows that were handed over wait in memory: flushing them needs no disk yet.
            store.flush()
            with pytest.raises(damo.OutOfSpaceError, match=str(path.parent)):
                WRITES[what](store, model)
        assert not store.closed
        assert_same_rows(rows_of(store), before)
        assert leftovers(path) == []
        assert not (path.parent / "own").exists()
        step(model)
        WRITES[what](store, model)
        if what in ("restore", "load_model"):
            step(model)
            step(model)
    with open_store(path, restore=None) as store:
        SmallModel(store)
        assert store.step == 3
        assert payloads(store, "t") == undisturbed(3)


@pytest.mark.slow
def test_a_full_disk_raises_and_training_goes_on_where_it_was(tmp_path):
    """All at once: the engine waits for some seconds whether there comes to be space."""

    def in_a_process(number: int, what: str) -> None:
        run(write_to_a_full_disk, tmp_path / str(number) / "store", what)

    for number in range(len(WRITES)):
        (tmp_path / str(number)).mkdir()
    with ThreadPoolExecutor() as threads:
        list(threads.map(in_a_process, range(len(WRITES)), WRITES))


# ------------------------------------------------------------------ a full disk under a store that is opened


def open_on_a_full_disk(path: Path, source: Path | None, steps: int, limit: int) -> None:
    restore = "latest" if source is None else source
    with files_of_at_most(limit), pytest.raises(damo.OutOfSpaceError, match=str(path)):
        open_store(path, restore=restore)
    with open_store(path, restore=restore) as store:
        model = SmallModel(store)
        assert store.step == steps
        assert payloads(store, "t") == undisturbed(steps)
        step(model)


# Bytes that a file may have: none, enough for the shortest, and for all but rows, where those are not linked.
@pytest.mark.parametrize(
    ("how", "limit"),
    [
        *itertools.product(["new", "existing", "from a checkpoint", "from a checkpoint on another disk"], [0, 64]),
        ("from a checkpoint on another disk", 5000),
    ],
)
def test_a_store_that_does_not_fit_opens_once_it_does(tmp_path, how, limit):
    path, source = tmp_path / "store", None
    if how != "new":
        with open_store(path) as store:
            model = SmallModel(store)
            step(model)
            source = store.checkpoint(tmp_path / "source")
    if how.startswith("from"):
        path = tmp_path / "other"
    else:
        source = None
    if how.endswith("another disk"):
        elsewhere = Path("/dev/shm") / tmp_path.name
        if not elsewhere.parent.is_dir() or elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is no other file system in /dev/shm")
        shutil.copytree(source, elsewhere)
        source = elsewhere
    try:
        run(open_on_a_full_disk, path, source, 0 if how == "new" else 1, limit)
    finally:
        if how.endswith("another disk"):
            shutil.rmtree(source)
    with open_store(path, restore=None) as store:
        SmallModel(store)
        assert payloads(store, "t") == undisturbed(store.step)


# ------------------------------------------------------------------ a small disk that fills up


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(where)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"only root may mount a file system: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def fill_up(where: Path) -> int:
    """Trains until nothing fits any more, then makes room and goes on. Returns the number of updates."""
    ballast = where / "ballast"
    ballast.write_bytes(bytes(40 << 20))
    with open_store(where / "store") as store:
        ebc = collection(store, "t", dim=DIM, initial=0.0)
        with pytest.raises(damo.OutOfSpaceError, match=str(where)) as raised:
            train_on_new_ids(ebc, 200)
        assert os.strerror(errno.ENOSPC) in str(raised.value)
        assert re.search(r"\d+ more bytes", str(raised.value))
        assert 0 < store.step < 200
        ballast.unlink()
        assert_all_are_whole(store)
        train_on_new_ids(ebc, 2)
        return store.step


def train_on_new_ids(ebc: damo.EmbeddingBagCollection, steps: int) -> None:
    first = 500 * ebc.store.step
    for i in range(first, first + 500 * steps, 500):
        update(ebc, {"t": [[j] for j in range(i, i + 500)]})


def assert_all_are_whole(store: damo.EmbeddingStore) -> None:
    rows = [(ids, weights) for ids, weights in store.table("t").items()]
    assert torch.equal(torch.cat([ids for ids, _ in rows]), torch.arange(500 * store.step))
    assert all(torch.equal(weights, torch.full_like(weights, -1.0)) for _, weights in rows)


@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_raises_and_training_goes_on(small_disk):
    steps = run(fill_up, small_disk)
    with open_store(small_disk / "store", restore=None) as store:
        collection(store, "t", dim=DIM, initial=0.0)
        assert store.step == steps
        assert_all_are_whole(store)
