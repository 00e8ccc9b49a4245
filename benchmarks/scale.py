#!/usr/bin/env python3
"""Times steps, and weighs memory, of tables from small to far larger than memory; `--help` tells the rest.

docs/performance.md describes the method.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from common.measure import write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, run, seed, share
from common.turns import Contestant, Turn, take_turns
from parts.scale.case import Case
from parts.scale.report import MIB, Result, as_json, in_words, opening_as_json, opening_in_words

if TYPE_CHECKING:
    from parts.scale.model import Opener, Trained

FULL = {"rows": [1_000_000, 10_000_000, 100_000_000], "steps": 150, "openings": 5}
QUICK = {"rows": [600_000, 2_400_000], "steps": 40, "openings": 1}
STEPS_IN_TURN = 5
WARM_UP_TURNS = 2
# What two cores write into new stores.
LOADED_ROWS_PER_SECOND = 700_000
# What training and compaction write besides.
SPARE_DISK = 2048 * MIB
GIB = 1 << 30

DESCRIPTION = """\
Trains tables of growing size under the same memory budget and at the same hit rate: a fixed part of
each batch's ids come from a few hot rows, which fit into memory, and the others from rows that were
not asked for before. Measures how much longer a step takes with more rows, by how much the process
grows, during a checkpoint too, and how long it takes to open the largest store. Each size has a
process of its own; they take turns of a few steps in one run.
"""

EPILOG = """\
The stores are made in a temporary directory: $TMPDIR has to be on the disk that is meant.

examples:
  python benchmarks/scale.py
  python benchmarks/scale.py --quick
  python benchmarks/scale.py --rows 5_000_000 50_000_000 --memory-budget 256 --json scale.json
"""


@dataclass(frozen=True)
class Loaded:
    """A closed store.

    Args:
        case: its table.
        path: where it is.
        seconds: that it took to make.
        disk_bytes: of its files.
    """

    case: Case
    path: Path
    seconds: float
    disk_bytes: int


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    cases = [of_size(rows, arguments) for rows in sorted(arguments.rows)]
    report = begin("scale")
    print(f"\n{describe(cases)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="damo-benchmark-") as directory:
        check_room(cases, Path(directory), report["machine"]["available_bytes"])
        stores = load(cases, Path(directory))
        largest = stores[-1]
        openings = time_openings(largest, arguments.openings)
        print(f"\n{opening_in_words(largest.disk_bytes, openings)}", flush=True)
        report["opening"] = opening_as_json(largest.disk_bytes, openings)
        results = train(stores, arguments.steps, Path(directory))
    print(f"\n{in_words(results)}")
    if arguments.json is not None:
        write_json(arguments.json, report | {"sizes": as_json(results)})


def describe(cases: Sequence[Case]) -> str:
    case = cases[0]
    return (
        f"tables of {', '.join(f'{case.rows:,}' for case in cases)} rows, dim {case.dim}, row-wise Adagrad; batch "
        f"{case.batch_size:,}, {case.features} features, {case.hot_share:.0%} of the ids from {case.hot_rows:,} rows; "
        f"memory budget {case.memory_budget / MIB:.0f} MiB, {case.threads} threads"
        f"{', direct I/O' if case.direct_io else ''}"
    )


def check_room(cases: Sequence[Case], directory: Path, available: int) -> None:
    """Says what comes, or raises RefusedError if the disk has no room for it. `available`: bytes of memory."""
    needed = sum(case.expected_disk_bytes for case in cases)
    minutes = sum(case.rows for case in cases) / LOADED_ROWS_PER_SECOND / 60
    print(
        f"the tables are loaded first: about {needed / GIB:.1f} GiB in {directory}, {minutes:.1f} minutes on two cores",
        flush=True,
    )
    if needed > available and not cases[0].direct_io:
        print(
            "NOTE: the page cache will not hold all of it: steps over larger tables will read from the disk", flush=True
        )
    free = shutil.disk_usage(directory).free
    if free < 1.3 * needed + SPARE_DISK:
        raise RefusedError(
            f"the tables need about {(1.3 * needed + SPARE_DISK) / GIB:.1f} GiB on the disk of {directory} while they "
            f"are trained, but {free / GIB:.1f} GiB are free: take fewer --rows, or set TMPDIR to another disk"
        )


def load(cases: Sequence[Case], directory: Path) -> list[Loaded]:
    from parts.scale.model import load

    stores = []
    total = sum(case.rows for case in cases)
    with tqdm(total=total, desc="loading", unit="row", unit_scale=True, leave=False, disable=None) as progress:
        for number, case in enumerate(cases):
            path = directory / f"store_{number}"
            start = time.perf_counter()
            load(case, path, progress.update)
            stores.append(Loaded(case, path, time.perf_counter() - start, bytes_of(path)))
    return stores


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def time_openings(store: Loaded, openings: int) -> dict[str, list[float]]:
    """Seconds of each, by where the files are. Leaves them out of the page cache."""
    seconds: dict[str, list[float]] = {"in the page cache": [], "on the disk alone": []}
    with tqdm(total=2 * openings, desc="opening", unit="opening", leave=False, disable=None) as progress:
        for where, of_each in seconds.items():
            for _ in range(openings):
                # A process that had no store open before.
                build = partial(build_opener, store)
                with Contestant(f"opening, files {where}", build, environment(store.case)) as opener:
                    opener.wait()
                    of_each.append(opener.call("open", where == "on the disk alone"))
                progress.update()
    return seconds


def train(stores: Sequence[Loaded], steps: int, directory: Path) -> list[Result]:
    """Has the sizes train in turns, for at least so many steps each, and then make a checkpoint each."""
    rounds, in_turn = in_turns(steps)
    with (
        ExitStack() as stack,
        tqdm(total=rounds, desc="filling memory", unit="round", leave=False, disable=None) as progress,
    ):
        contestants = []
        for store in stores:
            if not store.case.direct_io:
                read_into_page_cache(store.path)
            contestant = Contestant(
                f"{store.case.rows:,} rows",
                partial(build_trained, store),
                environment(store.case) | {"TMPDIR": str(directory)},
            )
            contestants.append(stack.enter_context(contestant))
        for contestant in contestants:
            contestant.wait()
        take_turns(contestants, WARM_UP_TURNS, in_turn)
        before = [contestant.call("counts") for contestant in contestants]
        progress.set_description("measuring")
        turns = take_turns(contestants, rounds, in_turn, progress.update)
        return [
            finish(contestant, store, of_size, *counts)
            for contestant, store, of_size, counts in zip(contestants, stores, turns, before, strict=True)
        ]


def in_turns(steps: int) -> tuple[int, int]:
    """Rounds, and the steps of a turn that are timed, after one that is not."""
    in_turn = min(steps, STEPS_IN_TURN)
    return -(-steps // in_turn), in_turn


def finish(contestant: Contestant, store: Loaded, turns: list[Turn], hits_before: int, misses_before: int) -> Result:
    hits, misses = contestant.call("counts")
    hits, misses = hits - hits_before, misses - misses_before
    growth = {"training": contestant.call("growth")}
    checkpoint_seconds = contestant.call("checkpoint")
    growth["checkpoint"] = contestant.call("growth")
    return Result(
        case=store.case,
        load_seconds=store.seconds,
        disk_bytes=store.disk_bytes,
        turns=turns,
        hit_rate=hits / (hits + misses),
        growth=growth,
        checkpoint_seconds=checkpoint_seconds,
    )


def read_into_page_cache(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb", buffering=0) as opened:
                while opened.read(4 * MIB):
                    pass


def environment(case: Case) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(case.threads)} | QUIET


# These two run in a contestant's process.


def build_opener(store: Loaded) -> "Opener":
    from parts.scale.model import Opener

    return Opener(store.case, store.path)


def build_trained(store: Loaded) -> "Trained":
    from parts.scale.model import Trained

    return Trained(store.case, store.path)


def of_size(rows: int, arguments: argparse.Namespace) -> Case:
    return Case(
        rows=rows,
        dim=arguments.dim,
        features=arguments.features,
        batch_size=arguments.batch_size,
        hot_rows=arguments.hot_rows,
        hot_share=arguments.hot_share,
        memory_budget=arguments.memory_budget * MIB,
        threads=arguments.threads,
        direct_io=arguments.direct_io,
        seed=arguments.seed,
    )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    parser = options.parser
    add = parser.add_argument
    rows = " ".join(map(str, FULL["rows"]))
    add("--rows", type=count, nargs="+", metavar="N", help=f"sizes of the table (default: {rows})")
    add("--dim", type=count, metavar="N", default=16, help=f"weights of a row, a multiple of 4 {DEFAULT}")
    add("--features", type=count, metavar="N", default=8, help=f"of the table, one id each in a sample {DEFAULT}")
    add("--batch-size", type=count, metavar="N", default=4096, help=f"samples in a step {DEFAULT}")
    add("--hot-rows", type=count, metavar="N", default=50_000, help=f"that stay in memory {DEFAULT}")
    add("--hot-share", type=share, metavar="PART", default=0.9, help=f"of a batch's ids that are theirs {DEFAULT}")
    add("--memory-budget", type=count, metavar="MIB", default=64, help=f"of each store {DEFAULT}")
    add("--direct-io", action="store_true", help="read and write past the page cache")
    threads = min(2, len(os.sched_getaffinity(0)))
    add("--threads", type=count, metavar="N", default=threads, help=f"of each size's process {DEFAULT}")
    add("--seed", type=seed, default=0, help=f"of the ids {DEFAULT}")
    add(
        "--steps",
        type=count,
        metavar="N",
        help=f"that are timed, of each size, in turns of {STEPS_IN_TURN} (default: {FULL['steps']})",
    )
    add("--openings", type=count, metavar="N", help=f"that are timed, of each kind (default: {FULL['openings']})")
    arguments = options.parse(argv)
    smallest = of_size(min(arguments.rows), arguments)
    rounds, in_turn = in_turns(arguments.steps)
    steps = smallest.steps_to_fill + (WARM_UP_TURNS + rounds) * (1 + in_turn)
    if steps > smallest.most_steps:
        parser.error(
            f"--rows: {smallest.rows:,} suffice for {max(0, smallest.most_steps)} steps that ask for new ones, but "
            f"{steps} are needed, {smallest.steps_to_fill} of them to fill memory"
        )
    if len(set(arguments.rows)) < len(arguments.rows):
        parser.error(f"--rows: sizes must differ, got {' '.join(map(str, arguments.rows))}")
    return arguments


if __name__ == "__main__":
    sys.exit(run(main))
