"""A sample of a store, and the tool."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
from damage import Sample, make_sample
from damo_torchrec.cli import main as cli
from support import config, kjt, small_store


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


@pytest.fixture
def document(call):
    """Runs the tool with ``--json``: its exit status, and its document."""

    def run(*arguments: object) -> tuple[int, dict]:
        status, lines, err = call(*arguments, "--json")
        assert err == ""
        found = json.loads("\n".join(lines))
        assert (found["schema"], found["command"]) == (1, arguments[0])
        return status, found

    return run


def make_trained(path: Path) -> Path:
    """A closed store with two tables trained by Adam, checkpoints ``then`` and the newest, and ids that have gone."""
    with small_store(path, keep_checkpoints=None, profile_cache=True) as store:
        options = {"half": damo.TableOptions(row_dtype=torch.bfloat16)}
        ebc = damo.EmbeddingBagCollection(
            [config("t", 8), config("half", 4)], torch.optim.Adam, {"lr": 0.1}, store=store, table_options=options
        )
        ebc(kjt({"t": [[5, -7, 6, 2**62]], "half": [[1, 2, -(2**63)]]})).values().sum().backward()
        store.checkpoint(store.path / "checkpoints" / "then")
        ebc(kjt({"t": [[5, 9, 5]], "half": [[2, 3]]})).values().square().sum().backward()
        store.table("t").delete([6])
        store.table("t").set([0], torch.zeros(1, 8))
    return path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    return make_trained(tmp_path_factory.mktemp("trained") / "store")


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """A copy of such a store, for the test to change."""
    shutil.copytree(trained_once, tmp_path / "trained")
    return tmp_path / "trained"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A model, and two exports of it: ``one`` and ``two``, which has other weights."""
    from serve_cases import served_twice  # which needs the packages of a server

    with served_twice(tmp_path_factory.mktemp("served")) as found:
        yield found
