"""A sample of a store, and the tool."""

import pytest

from damage import Sample, make_sample
from damo_torchrec.cli import main as cli


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def call(capsys):
    """Runs the tool: its exit status, what it printed, and what it printed as errors."""

    def run(*arguments: object) -> tuple[int, list[str], str]:
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run
