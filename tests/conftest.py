"""Fixtures of all tests."""

import os

import pytest
import torch
from hypothesis import settings

from support import A_HANDFUL_OF_ROWS, WITHOUT_ONNXRUNTIME, small_store

# The same examples in each run; with HYPOTHESIS_PROFILE=weekly more of them; with `long` many, and others each time.
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True, max_examples=40)
settings.register_profile("weekly", settings.get_profile("ci"), max_examples=100)
settings.register_profile("long", settings.get_profile("ci"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if WITHOUT_ONNXRUNTIME:
    collect_ignore = [
        "onnx",
        "server",
        "serving",
        "examples",
        "cli/test_serve.py",
        "cli/test_verify_exports.py",
        "test_graph_check.py",
        "test_permissions.py",
        "test_tensors.py",
    ]


def pytest_report_header() -> str | None:
    """What is left out, and why."""
    return f"left out for want of onnxruntime: {', '.join(collect_ignore)}" if WITHOUT_ONNXRUNTIME else None


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


@pytest.fixture(params=["memory", "memory, all rows evicted", "disk, all rows evicted"])
def any_store(request, tmp_path):
    """An empty store of each kind, for one table ``t``: what rows go through may not matter."""
    path = tmp_path / "store" if "disk" in request.param else None
    evicting = "evicted" in request.param
    with small_store(path, cache_bytes=A_HANDFUL_OF_ROWS if evicting else 0) as store:
        yield store
        if evicting:
            stats = store.stats().tables["t"]
            assert stats.cached_rows * store.table("t").dim * 4 <= A_HANDFUL_OF_ROWS
            assert stats.misses > store.table("t").iter


@pytest.fixture
def gloo():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
