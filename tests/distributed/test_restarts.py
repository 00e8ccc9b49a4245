"""Ranks that are killed, and started again: what they have in the end is what they would have had undisturbed."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import damo_torchrec as damo
import ranked_training as training
from processes import kill_this_process
from rank_processes import Kill, Killed, Raised, run_ranks, values
from ranked_training import Model

LAST = 12
GONE = ("DamoError", "RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "CheckpointException")


def _run(rank: int, root: Path, dies: tuple[int, str, int] | None = None) -> Any:
    """Goes on to `LAST` from what is there, with a checkpoint at every other step. A rank may die at some call."""
    if dies is not None and dies[0] == rank:
        _die_at(*dies[1:])
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = Model(store)
    optimizer = torch.optim.Adam(model.over.parameters(), lr=0.01)
    manager = damo.distributed.CheckpointManager(model, every_steps=2, keep=2)
    found = manager.restore(optimizer=optimizer)
    with manager:
        for step in range(found.step if found else 0, LAST):
            training.train(model, optimizer, step, step + 1)
            if dist.is_initialized():
                dist.barrier()
            manager.step(step + 1, optimizer=optimizer)
    rows = training.rows_of(store), training.dense_of(model, optimizer)
    store.close()
    return rows


def _die_at(name: str, call: int) -> None:
    """Has this process die at the so-and-so-manieth call of a function of `os`."""
    function, calls = getattr(os, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            kill_this_process()
        return function(*args, **kwargs)

    setattr(os, name, counted)


def _check_ends(results: list[Any]) -> bool:
    """Whether all have ended well; else some was killed, and the others have said what they miss."""
    for result in results:
        if isinstance(result, Raised):
            assert result.kind in GONE, result.trace
    return all(not isinstance(result, Raised | Killed) for result in results)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    directory = tmp_path_factory.mktemp("undisturbed")
    return values(run_ranks(_run, 2, directory, directory / "store"))


@pytest.mark.parametrize(
    "dies",
    [(0, "rename", 7), (1, "rename", 9), (0, "replace", 3), (1, "fsync", 40)],
    ids=lambda d: "-".join(map(str, d)),
)
def test_ranks_go_on_after_one_has_died(tmp_path: Path, undisturbed: list[Any], dies: tuple[int, str, int]) -> None:
    first = run_ranks(_run, 2, tmp_path, tmp_path / "store", dies)
    assert first[dies[0]] == Killed(), first
    assert not _check_ends(first)
    assert values(run_ranks(_run, 2, tmp_path, tmp_path / "store")) == undisturbed


@pytest.mark.slow
def test_ranks_go_on_after_kills_at_any_instant(tmp_path: Path, undisturbed: list[Any]) -> None:
    kill_some(
        tmp_path, undisturbed, kills=int(os.environ.get("DAMO_KILLS", "12")), seed=int(os.environ.get("DAMO_SEED", "1"))
    )


def kill_some(directory: Path, undisturbed: list[Any], *, kills: int, seed: int) -> None:
    """Kills ranks at random instants, and starts them again until they end, as often as it takes."""
    chance = random.Random(seed)
    done, run = 0, 0
    while done < kills:
        run += 1
        root = directory / f"store-{run}"
        while True:
            kill = Kill(chance.randrange(2), chance.uniform(0.2, 3.0)) if done < kills else None
            results = run_ranks(_run, 2, directory, root, kill=kill)
            done += any(result == Killed() for result in results)
            if _check_ends(results):
                break
        assert results == undisturbed
        assert not [path for path in (root / "checkpoints").iterdir() if path.name.startswith(".")]
