"""Publishing in any order of calls, by trainers that die anywhere: see `publishing_model`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from publishing_model import Run, cheap_exports, dense_graph_of
from support import directory_in_memory, weekly


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    graph = dense_graph_of(tmp_path_factory.mktemp("graph"))
    with cheap_exports(graph):
        yield graph


# Two of the seeds have found something.
@pytest.mark.parametrize("seed", [*range(6), 1795972026, 1795972862, *weekly(range(6, 20))])
def test_whatever_a_trainer_does_servers_follow(seed: int, graph: bytes) -> None:
    with directory_in_memory() as path:
        Run(seed, Path(path), graph).run()


@pytest.mark.parametrize("seed", [*range(6), *weekly(range(6, 20))])
def test_servers_drop_what_training_dropped(seed: int, graph: bytes) -> None:
    with directory_in_memory() as path:
        Run(seed, Path(path), graph, rows_die=True).run()
