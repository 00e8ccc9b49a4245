#!/usr/bin/env python3
"""Times one step of embedding tables (lookup, backward and update) against peers; `--help` tells the rest.

docs/performance.md describes the method.
"""

import argparse
import itertools
import os
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from typing import Any

from tqdm import tqdm

from common.entries import PEER_NAMES, PEERS, Entry, entries
from common.measure import write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, exponent, run, seed
from common.report import Result, as_json, in_words
from common.turns import Contestant, Trainee, take_turns
from common.workload import Workload

STEPS_IN_TURN = 5
WARM_UP_TURNS = 2
FULL = {"rows": 250_000, "steps": 100, "optimizer": ["rowwise_adagrad", "adam"]}
QUICK = {"rows": 5_000, "steps": 10, "optimizer": ["rowwise_adagrad"]}

DESCRIPTION = """\
Times one training step of embedding tables: lookup, backward and update, from a KeyedJaggedTensor
to a KeyedTensor. Peers are TorchRec's FusedEmbeddingBagCollection (FBGEMM on the CPU), and one
torch.nn.EmbeddingBag(sparse=True) a table with torch's optimizer. Each contestant has a process of
its own; they take turns of a few steps in one run, so that all get the same of a machine's moods.
"""

EPILOG = """\
Options that take several values measure every combination of them, one after the other.

examples:
  python benchmarks/embedding_step.py
  python benchmarks/embedding_step.py --quick
  python benchmarks/embedding_step.py --dims 16 64 128 --optimizer rowwise_adagrad
  python benchmarks/embedding_step.py --rows 1000000 --peers fbgemm --json step.json
"""


def main() -> None:
    arguments = parse_arguments()
    planned = races(arguments)
    report: dict[str, Any] = begin("embedding_step") | {"races": []}
    for workload, race in planned:
        needed = sum(entry.memory_bytes(workload) for entry in race)
        available = report["machine"]["available_bytes"]
        if needed > available:
            raise RefusedError(
                f"{workload}: {len(race)} contestants need about {needed / 2**30:.1f} GiB of memory together, "
                f"{available / 2**30:.1f} GiB are available: take fewer --peers or --rows"
            )
    for workload, race in planned:
        print(f"\n{workload}", flush=True)
        results = measure(workload, race, arguments.steps)
        print(f"\n{in_words(results)}", flush=True)
        report["races"].append(as_json(workload, results))
        if arguments.json is not None:  # now: what comes may fail
            write_json(arguments.json, report)


def races(arguments: argparse.Namespace) -> list[tuple[Workload, list[Entry]]]:
    """One for every combination of the options."""
    combinations = itertools.product(
        arguments.dims, arguments.bag, arguments.zipf, arguments.optimizer, arguments.threads
    )
    return [
        (
            Workload(
                tables=arguments.tables,
                rows=arguments.rows,
                dim=dim,
                batch_size=arguments.batch_size,
                bag=bag,
                zipf=zipf,
                seed=arguments.seed,
            ),
            entries(optimizer, threads, arguments.peers, arguments.tuned_memory),
        )
        for dim, bag, zipf, optimizer, threads in combinations
    ]


def measure(workload: Workload, race: list[Entry], steps: int) -> list[Result]:
    """Has the contestants train in turns, for at least so many steps each."""
    rounds = -(-steps // STEPS_IN_TURN)
    in_turn = min(steps, STEPS_IN_TURN)
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="damo-benchmark-"))
        contestants = [
            stack.enter_context(
                Contestant(
                    f"{entry.name}, {entry.setting}",
                    partial(build, entry, workload),
                    entry.environment() | {"TMPDIR": directory} | QUIET,
                )
            )
            for entry in race
        ]
        with tqdm(total=rounds, desc="preparing", unit="round", leave=False, disable=None) as progress:
            for contestant in contestants:
                contestant.wait()
            take_turns(contestants, WARM_UP_TURNS, in_turn)
            progress.set_description("measuring")
            turns = take_turns(contestants, rounds, in_turn, progress.update)
    return [Result(entry, of_entry) for entry, of_entry in zip(race, turns, strict=True)]


def build(entry: Entry, workload: Workload) -> Trainee:
    """Runs in the contestant's process."""
    from common import contestants  # here: torch is imported where it is used, under the contestant's environment

    return contestants.build(entry, workload)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add_tables_and_batches(options)
    add_race(options)
    return options.parse(argv)


def add_tables_and_batches(options: Options) -> None:
    tables = options.parser.add_argument_group("tables")
    tables.add_argument("--tables", type=count, metavar="N", default=26, help=f"how many {DEFAULT}")
    tables.add_argument("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    tables.add_argument(
        "--dims",
        type=count,
        nargs="+",
        metavar="N",
        default=[64],
        help="weights of a row, a multiple of 4 (default: 64)",
    )

    batches = options.parser.add_argument_group("batches")
    batches.add_argument("--batch-size", type=count, metavar="N", default=4096, help=f"samples in a step {DEFAULT}")
    batches.add_argument(
        "--bag", type=count, nargs="+", metavar="N", default=[1], help="ids of a feature in a sample (default: 1)"
    )
    batches.add_argument(
        "--zipf",
        type=exponent,
        nargs="+",
        metavar="EXPONENT",
        default=[1.05],
        help="how unequal the ids' frequencies are; 0 for equal (default: 1.05)",
    )
    batches.add_argument("--seed", type=seed, default=0, help=f"of ids and gradients {DEFAULT}")


def add_race(options: Options) -> None:
    race = options.parser.add_argument_group("race")
    race.add_argument(
        "--optimizer",
        nargs="+",
        choices=PEERS,
        help="ours. Peers have the same one, but nn.EmbeddingBag has SGD against rowwise_adagrad, which torch lacks; "
        "FBGEMM has no adam on the CPU (default: rowwise_adagrad adam)",
    )
    threads = min(2, len(os.sched_getaffinity(0)))
    race.add_argument(
        "--threads",
        type=count,
        nargs="+",
        metavar="N",
        default=[threads],
        help=f"of a contestant; peers also run with one (default: {threads})",
    )
    race.add_argument(
        "--peers",
        nargs="*",
        choices=PEER_NAMES,
        default=list(PEER_NAMES),
        help="against whom (default: all); without a name, ours runs alone",
    )
    race.add_argument(
        "--tuned-memory",
        action="store_true",
        help="in every contestant's process have malloc keep what is freed, and torch ask for huge pages; without, as "
        "they come, FBGEMM spends most of a step on page faults",
    )
    race.add_argument(
        "--steps",
        type=count,
        metavar="N",
        help=f"that are timed, of each contestant, in turns of {STEPS_IN_TURN} (default: {FULL['steps']})",
    )


if __name__ == "__main__":
    sys.exit(run(main))
