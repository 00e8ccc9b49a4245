"""A limit for what a store's directory takes on disk."""

import logging
import os
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import SmallModel, update
from support import A_HANDFUL_OF_ROWS, payloads


def open_store(path: Path, budget: int | str | None) -> damo.EmbeddingStore:
    options = damo.StoreOptions(num_threads=1, cache_bytes=A_HANDFUL_OF_ROWS, disk_budget=budget)
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options)


def train(model: SmallModel, first: int, n: int = 2000) -> None:
    update(model.ebc, {"t": [[i] for i in range(first, first + n)]}, gradient=1.0)


def bytes_on_disk(path: Path) -> int:
    """Of all files, hard links once."""
    found = {}
    for directory, _, names in os.walk(path):
        for name in names:
            status = os.lstat(Path(directory) / name)
            found[status.st_ino] = status.st_size
    return sum(found.values())


def test_a_store_says_what_its_files_take(tmp_path):
    with open_store(tmp_path / "s", "1GiB") as store:
        model = SmallModel(store)
        for step in range(3):
            train(model, 2000 * step)
            store.checkpoint()
        (tmp_path / "s" / "live.unclean-1").mkdir()
        (tmp_path / "s" / "live.unclean-1" / "000001.sst").write_bytes(bytes(100_000))
        assert store.stats().disk_budget == 1 << 30
    with open_store(tmp_path / "s", "1GiB") as store:
        assert store.stats().disk_used == bytes_on_disk(tmp_path / "s")
    with open_store(tmp_path / "s", None) as store:
        assert (store.stats().disk_used, store.stats().disk_budget) == (0, None)


def test_beyond_the_budget_nothing_grows_and_everything_else_goes_on(tmp_path, caplog):
    with open_store(tmp_path / "s", None) as store:
        model = SmallModel(store)
        train(model, 0)
        store.checkpoint()
    used = bytes_on_disk(tmp_path / "s")
    with caplog.at_level(logging.WARNING), open_store(tmp_path / "s", used - 1) as store:
        model = SmallModel(store)
        table = store.table("t")
        before = payloads(store, "t")
        with pytest.raises(damo.OutOfSpaceError, match=rf"take \d+ bytes of the disk_budget of {used - 1}"):
            train(model, 1999, 2)  # an id with a row, and one without
        assert store.step == 1
        assert len(table) == 2000
        with pytest.raises(damo.OutOfSpaceError, match="disk_budget"):
            table.set(torch.tensor([5000]), torch.zeros(1, table.dim))
        with pytest.raises(damo.OutOfSpaceError, match="disk_budget"):
            store.checkpoint(tmp_path / "elsewhere")
        with pytest.raises(damo.OutOfSpaceError, match="disk_budget"):
            store.checkpoint_async(tmp_path / "elsewhere")
        assert not (tmp_path / "elsewhere").exists()
        assert payloads(store, "t") == before
        assert [r.message for r in caplog.records if "% of disk_budget" in r.message]
        train(model, 0)  # updates, deletions and sets of rows that are there go on
        table.set(torch.tensor([7]), torch.ones(1, table.dim))
        table.delete(torch.arange(100))
        assert store.step == 2
        assert len(table) == 1900
        after = payloads(store, "t")
    with open_store(tmp_path / "s", None) as store:  # to close it makes a checkpoint all the same
        assert payloads(store, "t") == after


def test_once_there_is_space_the_next_step_succeeds(tmp_path):
    with open_store(tmp_path / "s", None) as store:
        model = SmallModel(store)
        for _ in range(3):
            train(model, 0)
            store.flush()
            store.checkpoint()
    with open_store(tmp_path / "s", bytes_on_disk(tmp_path / "s") - 1) as store:
        model = SmallModel(store)
        with pytest.raises(damo.OutOfSpaceError):
            train(model, 5000, 10)
        assert store.prune(keep=1)
        train(model, 5000, 10)
        assert len(store.table("t")) == 2010
        store.checkpoint()


def test_it_is_reached_while_a_run_grows(tmp_path):
    limit = 12 << 20
    with open_store(tmp_path / "s", limit) as store:
        model = SmallModel(store)

        def grow() -> None:
            for step in range(10_000):
                train(model, 8000 * step, 8000)
                store.flush()

        with pytest.raises(damo.OutOfSpaceError, match="disk_budget"):
            grow()
        rows = len(store.table("t"))
        assert rows == 8000 * store.step
        assert 0.8 * limit <= bytes_on_disk(tmp_path / "s") < 1.4 * limit  # compactions come and go


def test_a_warning_comes_once_before_it_is_reached(tmp_path, caplog):
    with open_store(tmp_path / "s", None) as store:
        train(SmallModel(store), 0)
    with caplog.at_level(logging.WARNING), open_store(tmp_path / "s", "1GiB") as store:
        used = store.stats().disk_used
    with caplog.at_level(logging.WARNING), open_store(tmp_path / "s", used + used // 20) as store:
        model = SmallModel(store)
        for _ in range(3):
            train(model, 0, 10)
        train(model, 5000, 10)
    warnings = [r.message for r in caplog.records if "of disk_budget" in r.message]
    assert len(warnings) == 1
    assert "9" in warnings[0].partition(" %")[0][-2:]


@pytest.mark.parametrize("budget", [0, -1, "much", 2**63])
def test_it_has_to_be_a_size(budget):
    with pytest.raises(ValueError, match=r"disk_budget|a size must be"):
        damo.StoreOptions(disk_budget=budget)


def test_it_has_to_be_a_size_of_something():
    with pytest.raises(TypeError, match="a size must be"):
        damo.StoreOptions(disk_budget=1.5)
    with pytest.raises(ValueError, match='backend="memory" keeps nothing on disk'):
        damo.StoreOptions(disk_budget="1GiB", backend="memory")


def test_a_read_only_store_has_none(tmp_path):
    with open_store(tmp_path / "s", None) as store:
        train(SmallModel(store), 0)
    options = damo.StoreOptions(disk_budget=1)
    with damo.EmbeddingStore(tmp_path / "s", read_only=True, options=options) as store:
        assert len(store.table("t")) == 2000
