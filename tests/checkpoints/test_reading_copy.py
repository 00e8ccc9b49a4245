"""Checkpoints with a journal, opened read-only: within the budget, and as they were."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints import reading_copy
from mixed_run import collection

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


def files(path: Path) -> dict[str, tuple[int, int, int, bytes]]:
    entries = ((str(p), p.stat(), p.read_bytes() if p.is_file() else b"") for p in [path, *path.rglob("*")])
    return {name: (stat.st_ino, stat.st_nlink, stat.st_mtime_ns, content) for name, stat, content in entries}


def temporary() -> list[Path]:
    return list(Path(tempfile.gettempdir()).iterdir())


def journal_bytes(path: Path) -> int:
    return sum(log.stat().st_size for log in (path / "rows").glob("*.log"))


def test_a_journal_is_not_held_in_memory(saved):
    before = files(saved.parent)
    with opened(saved) as store:
        check_rows(store)
        stats = store.stats()
        assert stats.memory_bytes <= stats.memory_budget < journal_bytes(saved)
        assert len(temporary()) == 1
        assert files(saved.parent) == before
    assert files(saved.parent) == before
    assert temporary() == []


def test_several_read_at_once(saved):
    with opened(saved) as first, opened(saved) as second:
        check_rows(first)
        check_rows(second)
    assert temporary() == []


def test_without_a_disk_for_it_the_journal_is_held_in_memory(saved, monkeypatch, caplog):
    monkeypatch.setattr(reading_copy, "on_tmpfs", lambda path: True)
    with opened(saved) as store:
        check_rows(store)
        assert store.stats().memory_bytes > journal_bytes(saved)
    assert "is held in memory, beyond memory_budget" in caplog.text
    assert temporary() == []


def test_a_damaged_journal_is_named_and_nothing_is_left(saved, tmp_path):
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
    assert temporary() == [copy]


def test_after_a_fork_the_parents_rows_stay(saved):
    with opened(saved) as store:
        child = os.fork()
        if child == 0:
            store.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        check_rows(store)
    assert temporary() == []
