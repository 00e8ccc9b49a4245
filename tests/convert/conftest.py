"""Damo-Embedding's own wheel, where there is one."""

import pytest

from convert.damo_wheel import Run, installed_at, runner


@pytest.fixture(scope="session")
def damo_embedding(tmp_path_factory) -> Run:
    directory = installed_at(tmp_path_factory.mktemp("damo_embedding"))
    return runner(directory, tmp_path_factory.mktemp("scratch"))
