"""Fixtures of all tests."""

import pytest


@pytest.fixture(autouse=True)
def _temporary_directories(tmp_path, monkeypatch):
    """Temporary stores go where pytest cleans up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
