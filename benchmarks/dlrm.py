#!/usr/bin/env python3
"""Times the training of TorchRec's DLRM over tables that are larger than memory; `--help` tells the rest.

docs/performance.md describes the method.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from common.measure import write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, exponent, run, seed
from common.workload import Workload
from parts.dlrm.race import Plan, Racer, builder, races

IO = {"buffered": False, "direct": True}
PREFETCH = ("off", "on")
PEERS = ("fbgemm",)
DEVICES = ("cpu", "cuda")
FULL = {"rows": 1_000_000, "steps": 200, "warm_up": 1500, "latency_steps": 1000, "history": 5000}
FULL |= {"budgets": [100, 50, 10, 1], "io": list(IO)}
QUICK = {"rows": 50_000, "steps": 10, "warm_up": 30, "latency_steps": 0, "history": 50}
QUICK |= {"budgets": [10], "io": ["buffered"]}

DESCRIPTION = """\
Times the training of a DLRM (dense layers 512-256-D below, 512-256-1 above, one table for each of
the categorical features), in samples per second: with all rows in memory, and with memory for a
part of them. The limits that this is compared with are the dense part alone, with embeddings that
cost nothing; and, where rows are on disk, that together with what RocksDB needs to read and write
the same rows without us. Each contestant has a process of its own; they take turns of a few steps
in one run, and each memory budget is a run of its own.
"""

EPILOG = """\
The store is built first, and its rows are trained while they all are in memory. A contestant begins
with that store: it reads the most popular rows, and trains its tables until the cache has come to
rest. All that takes minutes; with --data the store is there for the next time.

examples:
  python benchmarks/dlrm.py
  python benchmarks/dlrm.py --quick
  python benchmarks/dlrm.py --budgets 10 --io direct --prefetch on --data dlrm-data --json dlrm.json
"""


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    import torch

    from common import raw
    from parts.dlrm import roofs
    from parts.dlrm.inputs import inputs
    from parts.dlrm.report import as_json, results_table, verdicts, warm_up_in_words
    from parts.dlrm.training import measure

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise RefusedError("--device cuda: torch.cuda.is_available() is False")
    workload = Workload(
        arguments.tables, arguments.rows, arguments.dim, arguments.batch_size, zipf=arguments.zipf, seed=arguments.seed
    )
    plan = Plan(arguments.steps, arguments.warm_up, arguments.latency_steps)
    depths = [arguments.depth if word == "on" else 0 for word in arguments.prefetch]
    planned = races(
        arguments.budgets,
        [IO[word] for word in arguments.io],
        depths,
        bool(arguments.peers),
        arguments.threads,
        arguments.device,
    )
    report: dict[str, Any] = begin("dlrm") | {"races": []}
    print(f"\n{workload}", flush=True)
    for race in [[builder()], *planned]:
        refuse_too_large(race, workload, report["machine"]["available_bytes"])
    if any(racer.share_in_memory(workload) < 1 for race in planned for racer in race):
        raw.program()  # built now, rather than after the first race
    with inputs(workload, arguments.history, plan.batches(arguments.depth), arguments.data) as files:
        for race in planned:
            outcomes = measure(race, workload, files, plan)
            print(f"\n{results_table(outcomes, workload)}\n", flush=True)
            for outcome in outcomes:
                if outcome.warm_up is not None:
                    print(warm_up_in_words(outcome, workload), flush=True)
            rates = roofs.of_race(outcomes, workload, files)
            for line in verdicts(outcomes, rates, workload):
                print(line, flush=True)
            report["races"].append(as_json(outcomes, rates, workload))
            if arguments.json is not None:  # now: what comes may fail
                write_json(arguments.json, report)


def refuse_too_large(race: list[Racer], workload: Workload, available: int) -> None:
    needed = sum(racer.memory_bytes(workload) for racer in race)
    if needed > available:
        raise RefusedError(
            f"{len(race)} contestants with {race[-1].percent:g} % of the rows in memory need about "
            f"{needed / 2**30:.1f} GiB together, {available / 2**30:.1f} GiB are available: take fewer --rows, --io, "
            "--prefetch, or --budgets without it"
        )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    options.parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep the store and the batches in DIR, or take them if they are there"
    )
    add_tables(options)
    add_race(options)
    add_steps(options)
    return options.parse(argv)


def add_tables(options: Options) -> None:
    tables = options.parser.add_argument_group("tables")
    tables.add_argument("--tables", type=count, metavar="N", default=26, help=f"how many {DEFAULT}")
    tables.add_argument("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    tables.add_argument("--dim", type=count, metavar="N", default=16, help=f"weights of a row {DEFAULT}")
    tables.add_argument("--batch-size", type=count, metavar="N", default=2048, help=f"samples in a step {DEFAULT}")
    tables.add_argument(
        "--zipf",
        type=exponent,
        metavar="EXPONENT",
        default=1.05,
        help=f"how unequal the ids' frequencies are; 0 for equal {DEFAULT}",
    )
    tables.add_argument("--seed", type=seed, default=0, help=f"of ids, dense features and weights {DEFAULT}")


def add_race(options: Options) -> None:
    race = options.parser.add_argument_group("race")
    race.add_argument(
        "--budgets",
        type=percentage,
        nargs="+",
        metavar="PERCENT",
        help="how many of the rows memory holds; peers take part where it is 100 (default: 100 50 10 1)",
    )
    race.add_argument("--io", nargs="+", choices=IO, help="through the page cache, or past it (default: both)")
    race.add_argument(
        "--prefetch", nargs="+", choices=PREFETCH, default=list(PREFETCH), help="read rows ahead (default: off on)"
    )
    race.add_argument("--depth", type=count, metavar="N", default=1, help=f"of prefetch, in batches {DEFAULT}")
    race.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="against whom (default: fbgemm)")
    race.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="of the dense part. On a GPU peers' rows are in its memory, FBGEMM's also in host memory behind a cache "
        f"there, and ours in host memory {DEFAULT}",
    )
    threads = min(2, len(os.sched_getaffinity(0)))
    race.add_argument("--threads", type=count, metavar="N", default=threads, help=f"of a contestant {DEFAULT}")


def add_steps(options: Options) -> None:
    steps = options.parser.add_argument_group("steps")
    steps.add_argument(
        "--steps", type=count, metavar="N", help=f"that are timed, of each contestant (default: {FULL['steps']})"
    )
    steps.add_argument(
        "--history",
        type=count,
        metavar="N",
        help="of training that the rows have behind them, from which the cache knows how often they are used "
        f"(default: {FULL['history']})",
    )
    steps.add_argument(
        "--warm-up",
        type=count,
        metavar="N",
        help=f"of a contestant's tables, before it is timed, at most (default: {FULL['warm_up']})",
    )
    steps.add_argument(
        "--latency-steps",
        type=seed,
        metavar="N",
        help="that follow in a row, of the dense part and of ours with 10 %% of the rows and the page cache, for the "
        f"slowest ones; 0 for none (default: {FULL['latency_steps']})",
    )


def percentage(text: str) -> float:
    number = float(text)
    if not 0 < number <= 100:
        raise argparse.ArgumentTypeError(f"must be above 0 and not above 100, got {text}")
    return number


if __name__ == "__main__":
    sys.exit(run(main))
