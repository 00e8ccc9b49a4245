"""Samples of stores for damaging: copies of their checkpoints, as they are read by several tests."""

import pytest

from damage import Sample, make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def journal_sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("journal"), journal=True)
