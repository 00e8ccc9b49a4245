"""Two ranks on machines of their own, as far as the network goes, and a link that is cut in mid-step."""

import ctypes
import datetime
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

import damo_torchrec as damo
import ranked_training as training
from processes import HANGS_AFTER, started
from rank_processes import Raised

pytestmark = pytest.mark.slow

LAST, STOPS_AT = 7, 4
GIVES_UP_AFTER = 5  # seconds
STOPPED = "stopped"
_ADDRESSES = ("10.213.17.1", "10.213.17.2")


class Model(nn.Module):
    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        torch.manual_seed(3)
        tables = [EmbeddingBagConfig(name="a", embedding_dim=4, num_embeddings=100, feature_names=["a"])]
        self.sparse = damo.EmbeddingBagCollection(tables, torch.optim.Adam, {"lr": 0.05}, store=store)
        self.over = nn.Linear(4, 1)

    def forward(self, batch: KeyedJaggedTensor) -> torch.Tensor:
        return self.over(self.sparse(batch).values())


def _train(connection: Connection, root: Path, stop: str | None) -> dict[str, Any]:
    """Goes on to `LAST`, saving at each step. Stops in one of them, and goes on once the connection says so."""
    rank, size = training.world()

    def may_stop(step: int, where: str) -> None:
        if (step, where) == (STOPS_AT, stop):
            connection.send(STOPPED)
            connection.recv()

    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = DistributedModelParallel(Model(store), sharders=damo.distributed.sharders())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = damo.distributed.load_model(model, optimizer=optimizer)
    for step in range(found.step if found else 0, LAST):
        ids = training.ids_at(step)[rank::size]
        batch = KeyedJaggedTensor(["a"], ids, lengths=torch.ones(len(ids), dtype=torch.int64))
        optimizer.zero_grad()
        may_stop(step, "forward")
        loss = model(batch).square().mean()
        may_stop(step, "backward")
        loss.backward()
        optimizer.step()
        may_stop(step, "save")
        damo.distributed.save_model(model, optimizer=optimizer, step=step + 1)
    rows = training.rows_of(store)
    store.close()
    return rows


def _rank(connection: Connection, rank: int, namespace: str, root: Path, stop: str | None, timeout: float) -> None:
    try:
        _enter(namespace)
        os.environ["GLOO_SOCKET_IFNAME"] = "damo0"
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{_ADDRESSES[0]}:29500",
            rank=rank,
            world_size=2,
            timeout=datetime.timedelta(seconds=timeout),
        )
        result: Any = _train(connection, root, stop)
    except Exception as error:
        result = Raised(type(error).__name__, str(error), "")
    connection.send(result)


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
    # Torch asks for the name of each address, and no one answers.
    os.environ["RES_OPTIONS"] = "attempts:1 timeout:1"


def _ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[Sequence[str]]:
    """Two network namespaces with one link between them, and no other."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    names = [f"damo-{os.getpid()}-{rank}" for rank in range(2)]
    with ExitStack() as stack:
        for name in names:
            try:
                _ip(f"netns add {name}")
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespace can be made here: {error.stderr.strip()}")
            stack.callback(_ip, f"netns delete {name}")
        _ip(f"-n {names[0]} link add name damo0 type veth peer name damo0 netns {names[1]}")
        for name, address in zip(names, _ADDRESSES, strict=True):
            _ip(f"-n {name} address add {address}/24 dev damo0")
            _ip(f"-n {name} link set lo up")
            _ip(f"-n {name} link set damo0 up")
        yield names


def _run(machines: Sequence[str], root: Path, stop: str | None = None, timeout: float = HANGS_AFTER) -> list[Any]:
    """What the ranks return, or the `Raised` of it; the link is cut where they stop."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(started(_rank, rank, name, root, stop, timeout))[1]
            for rank, name in enumerate(machines)
        ]
        if stop is not None:
            assert [_received(rank) for rank in ranks] == [STOPPED] * 2
            _ip(f"-n {machines[1]} link set damo0 down")
            stack.callback(_ip, f"-n {machines[1]} link set damo0 up")
            for rank in ranks:
                rank.send("go on")
        return [_received(rank) for rank in ranks]


def _received(rank: Connection) -> Any:
    if not rank.poll(HANGS_AFTER):
        raise TimeoutError("a rank does not end")
    return rank.recv()


@pytest.fixture(scope="module")
def undisturbed(machines: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    rows = _run(machines, tmp_path_factory.mktemp("undisturbed") / "store")
    assert all(isinstance(of_rank, dict) for of_rank in rows), rows
    return rows


@pytest.mark.parametrize("stop", ["forward", "backward", "save"])
def test_ranks_end_with_an_error_when_their_link_is_cut_and_go_on_when_it_is_back(
    machines: Sequence[str], undisturbed: list[Any], tmp_path: Path, stop: str
) -> None:
    for result in _run(machines, tmp_path / "store", stop, GIVES_UP_AFTER):
        assert isinstance(result, Raised)
        # Gloo's own, or ours, which says what could not be done.
        assert result.kind in ("RuntimeError", "DamoError"), result
        assert "timeout" in result.message.lower() or "timed out" in result.message.lower(), result
    assert _run(machines, tmp_path / "store") == undisturbed
    names = {path.name for path in (tmp_path / "store" / "checkpoints").iterdir()}
    assert f"step_{LAST}" in names
    assert not [name for name in names if name.startswith(".")]
