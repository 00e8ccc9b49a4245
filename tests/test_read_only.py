"""Checkpoints with a journal, opened read-only: within the budget, and as they were."""

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import private_copy
from training import collection

ROWS = 220_000
DIM = 128
MIB = 1 << 20


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint of 107 MiB of rows, most of them in its journal."""
    path = tmp_path_factory.mktemp("saved") / "checkpoint"
    with damo.EmbeddingStore(path.parent / "store", memory_budget="512MiB") as store:
        collection(store, "t", dim=DIM)
        store.table("t").set(torch.arange(ROWS), weights())
        store.checkpoint(path)
    return path


def weights() -> torch.Tensor:
    return torch.arange(ROWS * DIM, dtype=torch.float32).reshape(ROWS, DIM)


def opened(path: Path) -> damo.EmbeddingStore:
    return damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True)


def check_rows(store: damo.EmbeddingStore) -> None:
    collection(store, "t", dim=DIM)
    assert torch.equal(store.table("t").get(torch.arange(ROWS)), weights())


def files(path: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_ino, p.read_bytes()) for p in path.rglob("*") if p.is_file()}


def beside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith("."))


def journal_bytes(path: Path) -> int:
    return sum(log.stat().st_size for log in (path / "rows").glob("*.log"))


def test_a_journal_is_not_held_in_memory(saved):
    before = files(saved)
    with opened(saved) as store:
        check_rows(store)
        stats = store.stats()
        assert stats.memory_bytes <= stats.memory_budget < journal_bytes(saved)
        assert len(beside(saved)) == 1
    assert files(saved) == before
    assert beside(saved) == []


def test_several_read_at_once_and_what_killed_processes_left_is_removed(saved):
    left = saved.parent / f".{saved.name}.reading-left"
    (left / "live").mkdir(parents=True)
    (left / "LOCK").touch()
    with opened(saved) as first, opened(saved) as second:
        assert not left.exists()
        assert len(beside(saved)) == 2
        check_rows(first)
        check_rows(second)
    assert beside(saved) == []


def test_rows_stay_where_the_checkpoint_goes(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    with opened(copy) as store:
        shutil.rmtree(copy)
        check_rows(store)
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_beside_the_checkpoint_the_journal_is_in_memory(saved, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError("read-only")

    monkeypatch.setattr(private_copy.tempfile, "mkdtemp", refuse)
    with caplog.at_level(logging.WARNING), opened(saved) as store:
        check_rows(store)
        assert store.stats().memory_bytes > journal_bytes(saved)
    assert "its journal is held in memory, beyond memory_budget" in caplog.text


def test_a_damaged_journal_is_named_and_no_copy_is_left(saved, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    (log,) = (copy / "rows").glob("*.log")
    with log.open("r+b") as file:
        file.seek(5 * MIB)
        byte = file.read(1)
        file.seek(5 * MIB)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(damo.CorruptionError, match=log.name):
        opened(copy)
    assert beside(copy) == []


def test_after_a_fork_the_parents_copy_stays(saved):
    with opened(saved) as store:
        child = os.fork()
        if child == 0:
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert len(beside(saved)) == 1
        check_rows(store)
    assert beside(saved) == []
