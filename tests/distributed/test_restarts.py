"""Ranks that are killed, and started again: what they have in the end is what they would have had undisturbed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ranked_kills
import ranked_training as training
from processes import kill_this_process
from rank_processes import Kill, Killed, run_ranks, values
from ranked_kills import ended_well

LAST = 12


def _run(rank: int, root: Path, dies: tuple[int, str, int] | None = None) -> Any:
    """Goes on to `LAST`; a rank may die at some call."""
    if dies is not None and dies[0] == rank:
        _die_at(*dies[1:])
    return training.to_the_end(root, LAST)


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
    assert not ended_well(first)
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
            if ended_well(results):
                break
        assert results == undisturbed
        assert not [path for path in (root / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_rows_that_come_and_go_do_so_alike_after_kills_at_any_instant(tmp_path: Path) -> None:
    kills, _ = ranked_kills.kill_some(tmp_path, kills=4, seed=2)
    assert kills >= 4


@pytest.mark.slow
def test_torchrun_starts_them_again(tmp_path: Path, undisturbed: list[Any]) -> None:
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--standalone"]
    # Without this, torch has gloo look for the ranks of before, whose addresses its store still has.
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, str(tests / "restart_program.py"), str(tmp_path / "store"), str(tmp_path / "died"), str(LAST)],
        env={**os.environ, **fresh, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "died").exists()
    found = [json.loads((tmp_path / f"rows-{rank}.json").read_text()) for rank in range(2)]
    assert found == json.loads(json.dumps(undisturbed))
