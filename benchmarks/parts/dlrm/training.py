"""Runs a race: brings every contestant to where a long training would have brought it, and has them take turns."""

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common.entries import OURS
from common.program import QUIET, RefusedError
from common.report import Result
from common.turns import Contestant, Turn, take_turns
from common.workload import Workload
from parts.dlrm import models
from parts.dlrm.figures import Figures, Use, WarmUp, is_steady, use_between
from parts.dlrm.inputs import Inputs
from parts.dlrm.race import WARM_UP_TURNS, Plan, Racer, times_latency

# Steps of a warm-up between two looks at how it comes along.
WINDOW = 25


@dataclass(frozen=True)
class Outcome(Result):
    """A contestant's turns, and ours: how its store fared.

    Args:
        budget: memory, in bytes.
        warm_up: before the turns.
        use: during the turns.
        latency: steps in a row, where they were timed.
    """

    entry: Racer
    budget: int | None = None
    warm_up: WarmUp | None = None
    use: Use | None = None
    latency: Turn | None = None


def measure(race: list[Racer], workload: Workload, inputs: Inputs, plan: Plan) -> list[Outcome]:
    """By contestant, in their order."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="race-", dir=inputs.directory)))
        contestants = [
            stack.enter_context(start(racer, workload, inputs, directory / str(number)))
            for number, racer in enumerate(race)
        ]
        bar = stack.enter_context(tqdm(desc="starting", unit="", leave=False, disable=None))
        for contestant in contestants:
            contestant.wait()
        warm_ups = [
            warm_up(contestant, racer, workload, plan.warm_up, bar) if racer.library == OURS else None
            for contestant, racer in zip(contestants, race, strict=True)
        ]
        for contestant in contestants:
            contestant.call("go_to", plan.warm_up)  # now all of them train on the same batches
        begin(bar, "first turns", WARM_UP_TURNS, "round")
        take_turns(contestants, WARM_UP_TURNS, plan.turn, bar.update)
        begin(bar, "measuring", plan.rounds, "round")
        before = figures(race, contestants)
        turns = take_turns(contestants, plan.rounds, plan.turn, bar.update)
        after = figures(race, contestants)
        latencies = steps_in_a_row(race, contestants, plan.latency, bar)
    return [
        Outcome(
            racer,
            turns[i],
            budget=racer.budget(workload) if racer.library == OURS else None,
            warm_up=warm_ups[i],
            use=use_between(before[i], after[i], plan.turn_steps),
            latency=latencies[i],
        )
        for i, racer in enumerate(race)
    ]


def start(racer: Racer, workload: Workload, inputs: Inputs, directory: Path) -> Contestant:
    return Contestant(
        f"{racer.name}, {racer.setting}",
        partial(models.build, racer, workload, inputs, directory),
        racer.environment() | {"TMPDIR": str(directory.parent)} | QUIET,
    )


def warm_up(contestant: Contestant, racer: Racer, workload: Workload, most: int, bar: tqdm) -> WarmUp:
    """Has a contestant read the popular rows, and train until its cache is as training makes it."""
    begin(bar, f"reading rows, {racer.setting}", workload.tables, "table")
    for table in range(workload.tables):
        contestant.call("read", table, racer.share_in_memory(workload))
        bar.update()
    now: Figures = contestant.call("figures")
    if racer.percent == 100:
        if now.cached_rows != workload.tables * workload.rows:
            raise RefusedError(f"{now.cached_rows} of {workload.tables * workload.rows} rows are in memory, not all")
        return WarmUp(WINDOW, [], steady=True)
    begin(bar, f"warm-up, {racer.setting}", most, "step")
    read: list[float] = []
    steady = False
    while not steady and WINDOW * (len(read) + 1) <= most:
        before = now
        contestant.call("warm_up", WINDOW)
        now = contestant.call("figures")
        read.append((now.rows_read - before.rows_read) / WINDOW)
        steady = is_steady(read, now.cached_rows / WINDOW)
        bar.update(WINDOW)
    return WarmUp(WINDOW, read, steady)


def figures(race: list[Racer], contestants: list[Contestant]) -> list[Figures | None]:
    return [
        contestant.call("figures") if racer.library == OURS else None
        for racer, contestant in zip(race, contestants, strict=True)
    ]


def steps_in_a_row(race: list[Racer], contestants: list[Contestant], steps: int, bar: tqdm) -> list[Turn | None]:
    """One long turn of each that `times_latency`, if any of ours does."""
    taking_part = [steps > 0 and times_latency(racer) for racer in race]
    if not any(part for part, racer in zip(taking_part, race, strict=True) if racer.library == OURS):
        return [None] * len(race)
    begin(bar, f"{steps:,} steps in a row", sum(taking_part), "contestant")
    latencies: list[Turn | None] = []
    for part, contestant in zip(taking_part, contestants, strict=True):
        latencies.append(contestant.run(steps) if part else None)
        bar.update(part)
    return latencies


def begin(bar: tqdm, what: str, total: int, unit: str) -> None:
    """The next thing that the bar shows."""
    bar.unit = unit
    bar.set_description(what)
    bar.reset(total)
