"""Fixtures of all tests."""

import pytest
import torch

from support import small_store


@pytest.fixture(autouse=True)
def _temporary_directories(tmp_path, monkeypatch):
    """Temporary stores go where pytest cleans up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


@pytest.fixture(autouse=True)
def _random_numbers():
    """Every test draws the same ones, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def store(tmp_path):
    """An empty store on disk."""
    with small_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def memory_store():
    """An empty store in memory: for what does not depend on where the rows are."""
    with small_store() as opened:
        yield opened
