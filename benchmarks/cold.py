#!/usr/bin/env python3
"""Times how rows that are not in memory are read, and how changed ones are written back; `--help` tells the rest.

docs/performance.md describes the method.
"""

import argparse
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common import raw
from common.budget import LEAST_BUDGET, MIB
from common.measure import write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, exponent, run, seed
from common.turns import take_turns
from common.workload import Workload
from parts.cold.report import Race, write_back_as_json, write_back_in_words

if TYPE_CHECKING:
    from parts.cold.readers import Setup

FULL = {"rows": 625_000, "rounds": 15, "batches": 10, "steps": 3000}
QUICK = {"rows": 37_500, "rounds": 5, "batches": 4, "steps": 75}
PARTS = ("page_cache", "direct_io", "write_back")

DESCRIPTION = """\
Times lookups of which every row has to be read, against RocksDB's MultiGet of the same rows from
the same files: from the page cache, and past it by direct I/O, where random reads of the disk are
measured, too. They take turns of a few batches, in one run; no row is asked for twice. Then trains
on Zipf-distributed ids with memory for a tenth of the rows, and reports how fast changed rows are
written back and how much RocksDB writes for it.
"""

EPILOG = """\
The files are in a temporary directory: $TMPDIR has to be on the disk that is meant.

examples:
  python benchmarks/cold.py
  python benchmarks/cold.py --quick
  python benchmarks/cold.py --rows 1_250_000 --parts direct_io --json cold.json
"""


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    from common.cold_store import ScatteredIds, load, payload_bytes
    from parts.cold.readers import Setup

    workload = Workload(
        tables=arguments.tables,
        rows=arguments.rows,
        dim=arguments.dim,
        batch_size=arguments.batch_size,
        zipf=arguments.zipf,
        seed=arguments.seed,
    )
    report = begin("cold") | {"options": {name: value for name, value in vars(arguments).items() if name != "json"}}
    rows, bytes_ = workload.tables * workload.rows, workload.tables * workload.rows * payload_bytes(workload)
    print(
        f"\n{workload.tables} tables × {workload.rows:,} rows, dim {workload.dim}: {bytes_ / MIB:,.0f} MiB", flush=True
    )
    raw.program()
    with tempfile.TemporaryDirectory(prefix="damo-benchmark-") as directory:
        check_room(Path(directory), bytes_, report["machine"]["available_bytes"])
        store = Path(directory) / "store"
        with tqdm(total=rows, desc="loading", unit="row", leave=False, disable=None) as progress:
            checkpoint = load(store, workload, arguments.memory_budget * MIB, progress.update)
        ids = ScatteredIds(workload, checkpoint)
        for part in arguments.parts:
            if part == "write_back":
                words, figures = write_back(store, workload, ids, arguments)
            else:
                setup = Setup(
                    checkpoint=checkpoint,
                    workload=workload,
                    ids=ids,
                    memory_budget=arguments.memory_budget * MIB,
                    threads=arguments.threads,
                    in_flight=arguments.in_flight,
                    direct_io=part == "direct_io",
                )
                race = measure(setup, arguments.rounds, arguments.batches)
                words, figures = race.in_words(), race.as_json()
            print(f"\n{words}", flush=True)
            report |= {part: figures}
            if arguments.json is not None:  # now: what comes may fail
                write_json(arguments.json, report)


def check_room(directory: Path, bytes_: int, available: int) -> None:
    """Raises RefusedError unless the disk holds the files, in all their copies, and memory, too."""
    free = shutil.disk_usage(directory).free
    needed = 5 * bytes_ + 256 * MIB
    if free < needed:
        raise RefusedError(f"the files take about {needed / MIB:,.0f} MiB, but {directory} has {free / MIB:,.0f}")
    needed = int(1.2 * bytes_) + 1024 * MIB
    if available < needed:
        raise RefusedError(
            f"the page cache has to hold the files: that takes about {needed / MIB:,.0f} MiB of memory, "
            f"{available / MIB:,.0f} MiB are available: take fewer --rows"
        )


def measure(setup: "Setup", rounds: int, batches: int) -> Race:
    """Has all readers take turns, for so many rounds, of so many batches each."""
    from parts.cold.readers import Disk, Ours, RawMultiGet

    if setup.direct_io:
        raw.disk_limit(setup.db, in_flight=1, seconds=0.01)  # says so where there is no direct I/O
    with ExitStack() as stack:
        readers = [stack.enter_context(Ours(setup, prefetch)) for prefetch in (False, True)]
        readers.append(RawMultiGet(setup))
        if setup.direct_io:
            readers.append(Disk(setup))
        else:
            for file in setup.db.iterdir():  # into the page cache
                file.read_bytes()
        what = "direct I/O" if setup.direct_io else "page cache"
        with tqdm(total=rounds, desc=what, unit="round", leave=False, disable=None) as progress:
            turns = take_turns(readers, rounds, batches, progress.update)
    return Race(
        setup.direct_io,
        setup.rows_per_batch,
        setup.memory_budget,
        {(reader.name, reader.setting): of_reader for reader, of_reader in zip(readers, turns, strict=True)},
    )


def write_back(store: Path, workload: Workload, ids: Any, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    from parts.cold.training import SLICES, train

    with tqdm(total=SLICES, desc="training", unit="slice", leave=False, disable=None) as progress:
        result = train(store, workload, ids, arguments.threads, arguments.steps, progress.update)
    return write_back_in_words(result), write_back_as_json(result)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    parser = options.parser
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: all)")
    add("--tables", type=count, metavar="N", default=8, help=f"how many {DEFAULT}")
    add("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    add("--dim", type=count, metavar="N", default=64, help=f"weights of a row, a multiple of 4 {DEFAULT}")
    add("--batch-size", type=count, metavar="N", default=1024, help=f"samples, with one id for each table {DEFAULT}")
    add("--zipf", type=exponent, metavar="EXPONENT", default=1.05, help=f"of the ids that are trained on {DEFAULT}")
    add("--seed", type=seed, default=0, help=f"of the ids {DEFAULT}")
    add("--memory-budget", type=count, metavar="MIB", default=64, help=f"of a store whose rows are read {DEFAULT}")
    threads = min(2, len(os.sched_getaffinity(0)))
    add("--threads", type=count, metavar="N", default=threads, help=f"of ours, and of MultiGet {DEFAULT}")
    add("--in-flight", type=count, metavar="N", default=64, help=f"reads of others by direct I/O {DEFAULT}")
    add("--rounds", type=count, metavar="N", help=f"of turns (default: {FULL['rounds']})")
    add("--batches", type=count, metavar="N", help=f"of a turn, and one that is not timed (default: {FULL['batches']})")
    add("--steps", type=count, metavar="N", help=f"of training (default: {FULL['steps']})")
    arguments = options.parse(argv)
    least = LEAST_BUDGET // MIB
    if arguments.memory_budget < least:
        parser.error(f"--memory-budget: must be at least {least} MiB, got {arguments.memory_budget}")
    batches = arguments.rounds * (1 + arguments.batches)
    if batches * arguments.batch_size > arguments.rows:
        parser.error(
            f"--rows: {batches} batches of {arguments.batch_size} samples need {batches * arguments.batch_size} rows "
            f"of each table that were never asked for, got {arguments.rows}"
        )
    return arguments


if __name__ == "__main__":
    sys.exit(run(main))
