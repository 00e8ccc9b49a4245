import pytest

from ranks import started_ranks


@pytest.fixture(scope="session", params=[1, 2, 4], ids=lambda n: f"{n}-ranks")
def ranks(request):
    """A process group of each size."""
    if request.param == 2:
        yield request.getfixturevalue("two_ranks")
        return
    with started_ranks(request.param) as group:
        yield group


@pytest.fixture(scope="session")
def two_ranks():
    with started_ranks(2) as group:
        yield group
