#!/usr/bin/env python3
"""Times checkpoints: how much training stalls, what one costs when little has changed, and disk use; `--help`.

docs/reliability.md describes the method.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from common.budget import LEAST_BUDGET, MIB, budget_for, cached_row_bytes
from common.measure import table, write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, exponent, run, seed, share
from common.workload import Workload

FULL = {"rows": 480_000, "steps": 200, "rounds": 3}
QUICK = {"rows": 20_000, "steps": 20, "rounds": 1}

DESCRIPTION = """\
Trains tables of which all rows are in memory and all have changed, makes a checkpoint meanwhile, and
adds up by how much the steps, from the one that begins it to the last before it is complete, exceed the
median of those before: with the checkpoint written in the background, and by the calling thread. Then
changes a few rows between checkpoints, of which three are kept: how many bytes each adds to the disk,
how long it takes, and what the disk holds in the end. At last opens the store again.
"""

EPILOG = """\
The store is in a temporary directory: $TMPDIR has to be on the disk that is meant.

examples:
  python benchmarks/checkpoint.py
  python benchmarks/checkpoint.py --quick
  python benchmarks/checkpoint.py --tables 2 --rows 100_000 --changed 0.001 --json checkpoint.json
"""


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    from parts.checkpoint.training import Checkpoints

    workload = Workload(
        tables=arguments.tables,
        rows=arguments.rows,
        dim=arguments.dim,
        batch_size=arguments.batch_size,
        zipf=arguments.zipf,
        seed=arguments.seed,
    )
    rows = workload.tables * workload.rows
    budget = max(budget_for(int(1.15 * rows * cached_row_bytes(workload.dim))), LEAST_BUDGET)
    report = begin("checkpoint") | {
        "options": {name: value for name, value in vars(arguments).items() if name != "json"}
    }
    print(f"\n{workload}, row-wise Adagrad; memory budget {budget / MIB:,.0f} MiB", flush=True)
    with tempfile.TemporaryDirectory(prefix="damo-benchmark-") as directory:
        check_room(Path(directory), int(rows * cached_row_bytes(workload.dim)))
        with Checkpoints(Path(directory), workload, budget, arguments.threads) as checkpoints:
            report["dirty_bytes"] = checkpoints.make_all_dirty()
            print(f"{report['dirty_bytes'] / MIB:,.0f} MiB of changed rows\n", flush=True)
            report["stalls"] = [
                checkpoints.stall(background, arguments.steps)
                for _ in range(arguments.rounds)
                for background in (True, False)
            ]
            print(stalls_in_words(report["stalls"]), flush=True)
            report["increments"] = checkpoints.increments(arguments.changed, 3 * arguments.rounds)
            print(f"\n{increments_in_words(report['increments'])}", flush=True)
        report["opening_seconds"] = checkpoints.open_again()
        print(f"\nopened again in {report['opening_seconds']:.2f} s", flush=True)
    if arguments.json is not None:
        write_json(arguments.json, report)


def stalls_in_words(stalls: list[dict[str, float]]) -> str:
    header = [
        "written",
        "",
        "s until complete",
        "steps meanwhile",
        "ms/step before",
        "longest ms",
        "s above median",
        "MiB over budget",
    ]
    rows = [
        [
            "in the background" if stall["background"] else "by the caller",
            "",
            f"{stall['seconds']:.1f}",
            f"{stall['steps']:.0f}",
            f"{1000 * stall['median']:.1f}",
            f"{1000 * stall['longest']:.0f}",
            f"{stall['excess']:.2f}",
            f"{max(stall['over_budget_bytes'], 0) / MIB:.0f}",
        ]
        for stall in stalls
    ]
    return table(header, rows)


def increments_in_words(increments: list[dict[str, float]]) -> str:
    header = ["rows changed", "", "s", "new MiB", "of the store", "MiB on disk", "÷ one checkpoint"]
    rows = [
        [
            f"{increment['changed']:.2%}",
            "",
            f"{increment['seconds']:.2f}",
            f"{increment['new_bytes'] / MIB:.1f}",
            f"{increment['new_bytes'] / increment['bytes']:.1%}",
            f"{increment['disk_bytes'] / MIB:,.0f}",
            f"{increment['disk_bytes'] / increment['bytes']:.2f}",
        ]
        for increment in increments
    ]
    return table(header, rows)


def check_room(directory: Path, bytes_: int) -> None:
    """Raises RefusedError unless the disk holds the checkpoints."""
    free, needed = shutil.disk_usage(directory).free, 8 * bytes_ + 256 * MIB
    if free < needed:
        raise RefusedError(f"checkpoints take up to {needed / MIB:,.0f} MiB, but {directory} has {free / MIB:,.0f}")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add = options.parser.add_argument
    add("--tables", type=count, metavar="N", default=8, help=f"how many {DEFAULT}")
    add("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    add("--dim", type=count, metavar="N", default=64, help=f"weights of a row, a multiple of 4 {DEFAULT}")
    add("--batch-size", type=count, metavar="N", default=2048, help=f"samples, with one id for each table {DEFAULT}")
    add("--zipf", type=exponent, metavar="EXPONENT", default=1.05, help=f"of the ids {DEFAULT}")
    add("--seed", type=seed, default=0, help=f"of the ids {DEFAULT}")
    add("--changed", type=share, metavar="SHARE", default=0.01, help=f"of the rows, between checkpoints {DEFAULT}")
    threads = min(2, len(os.sched_getaffinity(0)))
    add("--threads", type=count, metavar="N", default=threads, help=f"of the store, and of torch {DEFAULT}")
    add("--steps", type=count, metavar="N", help=f"before each checkpoint (default: {FULL['steps']})")
    add("--rounds", type=count, metavar="N", help=f"checkpoints of each kind (default: {FULL['rounds']})")
    return options.parse(argv)


if __name__ == "__main__":
    sys.exit(run(main))
