#!/usr/bin/env python3
"""Trains for hours and watches memory, descriptors, threads and disk; `--help` tells the rest."""

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from common.measure import write_json
from common.program import DEFAULT, QUIET, Options, RefusedError, begin, count, exponent, run, seed, share
from common.resident import resident_bytes
from parts.soak import bounds
from parts.soak.bounds import LifeSample, RowRange
from parts.soak.case import Case, EndlessCase
from parts.soak.report import LEAST_SAMPLES, MIB, Sample, as_json, grows, in_words

FULL = {"minutes": 60.0}
QUICK = {"minutes": 3.0}
GIB = 1 << 30

DESCRIPTION = """\
Trains a model whose rows take several times the memory budget, on ids that arrive all the time and
are asked for again by a Zipf distribution, the newest most often; once all rows are there, the
oldest are deleted, and arrive anew. Makes checkpoints and keeps the last few. Looks every few
seconds at the memory, the descriptors and the threads of the process and at the disk. Ends with
status 1 if memory, descriptors or threads grow once all rows are there: from the median of the
first quarter of that time to that of the last by more than is allowed.

With --lives no id arrives twice and nothing is deleted: the tables' options say which ids get rows
(at the second sighting) and which rows go (idle by steps or by time, and max_rows, which is ten
times the memory budget). The number of rows, the disk and the memory of the store have bounds then;
it ends with status 1 as well if one is broken.
"""

EPILOG = """\
The store is made in a temporary directory: $TMPDIR has to be on the disk that is meant.

examples:
  python benchmarks/soak.py
  python benchmarks/soak.py --quick
  python benchmarks/soak.py --lives
  python benchmarks/soak.py --minutes 600 --memory-budget 512 --json soak.json
"""


def main() -> None:
    arguments = parse_arguments()
    case = case_of(arguments)
    os.environ.update(QUIET)  # before torch is imported
    report = begin("soak")
    print(f"\n{describe(case)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="damo-soak-") as directory:
        check_room(case, Path(directory))
        watched = soak(case, Path(directory) / "store", arguments)
    warm = [sample for sample in watched.samples if sample.steps >= watched.filled_at]
    if len(warm) < LEAST_SAMPLES:
        raise RefusedError(
            f"too few samples to tell what grows: {len(warm)} since all rows were there, and {LEAST_SAMPLES} are "
            "needed; take more --minutes"
        )
    print(f"\n{len(warm)} of {len(watched.samples)} samples, since all rows were there:\n")
    print(in_words(warm, case.memory_budget))
    report |= as_json(watched.samples, warm, case.memory_budget)
    failed = grows(warm, case.memory_budget)
    if isinstance(case, EndlessCase):
        held = bounds.held(
            case, watched.lives, [sample for sample in watched.lives if sample.steps >= watched.filled_at]
        )
        print(f"\n{bounds.in_words(held, watched.lives[-1].lives)}")
        report |= bounds.as_json(held, watched.lives)
        failed |= any(bound.broken for bound in held)
    if arguments.json is not None:
        write_json(arguments.json, report)
    if failed:
        sys.exit(1)


@dataclass
class Watched:
    """What was seen of a run, and after how many steps all rows were there."""

    samples: list[Sample] = field(default_factory=list)
    lives: list[LifeSample] = field(default_factory=list)
    filled_at: int = sys.maxsize


def describe(case: Case) -> str:
    return (
        f"{case.tables} tables × {case.rows:,} rows, dim {case.dim}, row-wise Adagrad, {case.times_budget:g} × the "
        f"memory budget of {case.memory_budget / MIB:.0f} MiB; batch {case.batch_size:,}, {case.new_share:.0%} of it "
        f"new ids, the others by Zipf {case.zipf:g}; {case.threads} threads"
    )


def check_room(case: Case, directory: Path) -> None:
    """Raises RefusedError if the disk has no room."""
    free = shutil.disk_usage(directory).free
    if free < case.expected_disk_bytes:
        raise RefusedError(
            f"the store may take {case.expected_disk_bytes / GIB:.1f} GiB on the disk of {directory}, but "
            f"{free / GIB:.1f} GiB are free: take less --times-budget, or set TMPDIR to another disk"
        )


def soak(case: Case, path: Path, arguments: argparse.Namespace) -> Watched:
    """Trains until all rows are there, and then for the time that is asked for."""
    from parts.soak.model import Soaked, warm_up

    warm_up(case)
    before = resident_bytes()
    model = Soaked(case, path)
    watched = Watched()
    of_steps: list[float] = []
    rows = RowRange()
    number = 0
    start = sampled = saved = now = time.monotonic()
    end = math.inf
    with (
        model.store,
        tqdm(total=case.steps_to_fill, desc="filling", unit="step", leave=False, disable=None) as progress,
    ):
        while now < end:
            model.step(number)
            number += 1
            last, now = now, time.monotonic()
            of_steps.append(now - last)
            rows.add(model.rows())
            progress.update()
            if end == math.inf and model.is_full(number):
                watched.filled_at = number
                end = now + 60 * arguments.minutes
                progress.set_description(f"soaking for {arguments.minutes:g} minutes")
            if now - saved >= arguments.checkpoint_every:
                model.save()
                saved = now = time.monotonic()
            if now - sampled >= arguments.sample_every:
                sample = Sample.take(path, now - start, number, sum(model.rows()), of_steps)
                watched.samples.append(sample)
                if isinstance(case, EndlessCase):
                    watched.lives.append(LifeSample.of(sample, rows, model.lives(), before))
                of_steps.clear()
                rows = RowRange()
                sampled = now = time.monotonic()
    return watched


def case_of(arguments: argparse.Namespace) -> Case:
    return (EndlessCase if arguments.lives else Case)(
        tables=arguments.tables,
        dim=arguments.dim,
        batch_size=arguments.batch_size,
        new_share=arguments.new_share,
        zipf=arguments.zipf,
        memory_budget=arguments.memory_budget * MIB,
        times_budget=arguments.times_budget,
        keep=arguments.keep,
        threads=arguments.threads,
        seed=arguments.seed,
    )


def positive(text: str) -> float:
    number = exponent(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be positive, got 0")
    return number


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add = options.parser.add_argument
    add("--minutes", type=positive, metavar="N", help=f"once all rows are there (default: {FULL['minutes']:g})")
    add("--lives", action="store_true", help="have rows come and go by the tables' options")
    add("--tables", type=count, metavar="N", default=4, help=f"how many {DEFAULT}")
    add("--dim", type=count, metavar="N", default=32, help=f"weights of a row, a multiple of 4 {DEFAULT}")
    add("--batch-size", type=count, metavar="N", default=4096, help=f"samples in a step {DEFAULT}")
    add("--new-share", type=share, metavar="PART", default=0.25, help=f"of a batch's ids that are new {DEFAULT}")
    add("--zipf", type=exponent, metavar="EXPONENT", default=1.05, help=f"of how old the others are {DEFAULT}")
    add("--memory-budget", type=count, metavar="MIB", default=64, help=f"of the store {DEFAULT}")
    add("--times-budget", type=positive, metavar="N", default=10.0, help=f"as many bytes of rows {DEFAULT}")
    add("--checkpoint-every", type=positive, metavar="SECONDS", default=15.0, help=f"of training {DEFAULT}")
    add("--keep", type=count, metavar="N", default=3, help=f"checkpoints {DEFAULT}")
    add("--sample-every", type=positive, metavar="SECONDS", default=2.0, help=f"of training {DEFAULT}")
    threads = min(2, len(os.sched_getaffinity(0)))
    add("--threads", type=count, metavar="N", default=threads, help=f"of the store and of torch {DEFAULT}")
    add("--seed", type=seed, default=0, help=f"of ids and labels {DEFAULT}")
    return options.parse(argv)


if __name__ == "__main__":
    sys.exit(run(main))
