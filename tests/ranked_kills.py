"""Kills ranks of a run in which rows come and go, at random instants, and starts them again.

What the ranks have in the end has to be what they have undisturbed, to the bit. By hand:
`python tests/ranked_kills.py --kills 200 --seed 1`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import damo_torchrec as damo
import ranked_lives
import ranked_training
from rank_processes import Kill, Killed, Raised, run_ranks, values
from ranked_lives import Stream

# What the ranks that live on may raise.
GONE = ("DamoError", "RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "CheckpointException")

STREAM = Stream(
    damo.TableOptions(
        admit=damo.Admit(sightings=2, within_steps=20), expire=[damo.Idle(steps=9)], max_rows=130, min_rows=20
    ),
    batch=24,
    longest=3,
)
LAST = 60


def to_the_end(rank: int, root: Path, last: int = LAST) -> Any:
    """Goes on to `last` from what is there, with a checkpoint at every fifth step; returns what there is then."""
    store = damo.distributed.open_store(root, memory_budget="64MiB")
    model = ranked_lives.model_over(STREAM, store)
    manager = damo.distributed.CheckpointManager(model, every_steps=5, keep=2)
    found = manager.restore()
    with manager:
        for step in range(found.step if found else 0, last):
            store.clock = lambda step=step: STREAM.time(step)
            model(STREAM.features(step + 1, rank, dist.get_world_size())).square().sum().backward()
            manager.step(step + 1)
    life = replace(store.table("t").stats().life, memory_bytes=0)  # of which a life that is read again has less room
    result = ranked_training.rows_of(store), ranked_lives.living(store), store.session.engine.life_bytes(0), life
    store.close()
    return result


def ended_well(results: list[Any]) -> bool:
    """Whether all have; else some was killed, and the others have said what they miss."""
    for result in results:
        if isinstance(result, Raised):
            assert result.kind in GONE, result.trace
    return all(not isinstance(result, Raised | Killed) for result in results)


def kill_some(directory: Path, *, kills: int, seed: int, seconds: float = float("inf")) -> tuple[int, int]:
    """Kills ranks at random instants, and starts them again until they end, as often as it takes.

    Args:
        directory: for stores.
        kills: how many.
        seed: of the instants.
        seconds: after which no more are made.

    Returns:
        How many kills there were, and runs that have come to their end.
    """
    undisturbed = values(run_ranks(to_the_end, 2, directory, directory / "undisturbed"))
    check_rules(undisturbed)
    chance, begun = random.Random(seed), time.monotonic()
    began = time.monotonic()
    values(run_ranks(to_the_end, 2, directory, directory / "again"))
    longest = time.monotonic() - began
    done, runs = 0, 0
    while done < kills and time.monotonic() - begun < seconds:
        runs += 1
        root = directory / f"store-{runs}"
        while True:
            more = done < kills and time.monotonic() - begun < seconds
            kill = Kill(chance.randrange(2), chance.uniform(0.1, longest)) if more else None
            results = run_ranks(to_the_end, 2, directory, root, kill=kill)
            done += any(result == Killed() for result in results)
            if ended_well(results):
                break
        assert results == undisturbed, f"run {runs} of seed {seed} differs after {done} kills"
        assert not [path for path in (root / "checkpoints").iterdir() if path.name.startswith(".")]
    return done, runs


def check_rules(results: list[Any]) -> None:
    """That rows went by each of the rules, and others came."""
    lives = [life for *_, life in results]
    assert sum(life.cut for life in lives) > 0, lives
    assert sum(sum(life.expired.values()) for life in lives) > 0, lives
    assert sum(life.forgotten_sightings for life in lives) >= 0, lives
    assert any(seen for _, (_, seen), *_ in results), "no id waits to be admitted"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="make no more kills after so many")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        kills, runs = kill_some(Path(directory), kills=asked.kills, seed=asked.seed, seconds=60 * asked.minutes)
    sys.stdout.write(f"{kills} kills in {runs} runs, each of which ended with the bits of an undisturbed one\n")


if __name__ == "__main__":
    main()
