"""Fixtures of the tests of stores."""

import pytest

from support import small_store


@pytest.fixture(params=["rocksdb", "memory"])
def each_store(request, tmp_path):
    """A store on disk, and one in memory."""
    with small_store(tmp_path / "store" if request.param == "rocksdb" else None) as opened_store:
        yield opened_store
