"""Fixtures of the tests of the server."""

from collections.abc import Iterator
from typing import Any

import pytest

from serve_cases import served_twice


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model, and two exports of it: ``one`` and ``two``, which has other weights."""
    with served_twice(tmp_path_factory.mktemp("served")) as found:
        yield found
