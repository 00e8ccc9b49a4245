#!/usr/bin/env python3
"""Counts how often our cache misses, against the best choice of rows that never changes; `--help` tells the rest.

docs/performance.md describes the method.
"""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.measure import table, write_json
from common.program import DEFAULT, QUIET, Options, begin, count, exponent, run, seed, share
from parts.cache_policy.case import HINDSIGHT, KNOWN, OURS, Case, Outcome

FULL = {"rows": 100_000, "dim": 16, "batch_size": 2048, "steps": 2400}
# Wider rows: fewer of them fill the least budget.
QUICK = {"rows": 20_000, "dim": 128, "batch_size": 512, "steps": 200}
TARGET = 1.1

DESCRIPTION = """\
Counts the ids whose rows our cache has not in memory while a collection is trained on Zipf-
distributed ids, with memory for a part of the rows. The measure is the best choice of as many rows
that never changes: those that are asked for most often in the steps counted, known in hindsight, or
those that are the most popular by the distribution. For scale, LRU, which evicts the least recently
used row, is simulated with as many rows. Nothing is timed: the same options give the same counts.
"""

EPILOG = """\
examples:
  python benchmarks/cache_policy.py
  python benchmarks/cache_policy.py --quick
  python benchmarks/cache_policy.py --share 0.02 --zipf 0.9 --rows 1_000_000 --backend rocksdb
"""


def main() -> None:
    case, json = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    from parts.cache_policy.policies import measure

    case.budget()  # refuses
    report = begin("cache_policy")
    print(f"\n{case}", flush=True)
    with tqdm(total=2 * case.steps, unit="step", leave=False, disable=None) as progress:
        outcome = measure(case, progress.update)
    print(f"\n{in_words(case, outcome)}")
    if json is not None:
        write_json(json, report | as_json(case, outcome))


def in_words(case: Case, outcome: Outcome) -> str:
    rows = []
    for policy, misses in outcome.misses.items():
        ratios = [f"{outcome.ratio(policy, best):.3f}" for best in (HINDSIGHT, KNOWN)]
        rows.append([policy, "", f"{misses:,}", f"{misses / outcome.ids:.2%}", *ratios])
    ratio = outcome.ratio(OURS, HINDSIGHT)
    verdict = (
        f"{OURS} misses {ratio:.3f} times as often as the best choice in hindsight; the target of at most {TARGET} is "
        f"{'met' if ratio <= TARGET else 'missed'}"
    )
    return "\n".join(
        [
            f"{outcome.cached_rows:,} rows in memory, {outcome.cached_rows / case.all_rows:.2%}; "
            f"{outcome.ids:,} ids counted",
            "",
            table(["", "", "misses", "of ids", "÷ hindsight", "÷ distribution"], rows),
            "",
            f"{verdict}, BUT {outcome.doubt}" if outcome.doubt else verdict,
        ]
    )


def as_json(case: Case, outcome: Outcome) -> dict[str, Any]:
    ratios = {best: {policy: outcome.ratio(policy, best) for policy in outcome.misses} for best in (HINDSIGHT, KNOWN)}
    return {"case": asdict(case), **asdict(outcome), "ratios": ratios, "target": TARGET, "doubt": outcome.doubt}


def parse_arguments(argv: list[str] | None = None) -> tuple[Case, Path | None]:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add = options.parser.add_argument
    add("--tables", type=count, metavar="N", default=26, help=f"how many {DEFAULT}")
    add("--rows", type=count, metavar="N", help=f"different ids of each table (default: {FULL['rows']})")
    add("--dim", type=count, metavar="N", help=f"weights of a row, a multiple of 4 (default: {FULL['dim']})")
    add("--batch-size", type=count, metavar="N", help=f"samples in a step (default: {FULL['batch_size']})")
    add(
        "--zipf",
        type=exponent,
        metavar="EXPONENT",
        default=1.05,
        help=f"how unequal the ids' frequencies are; 0 for equal {DEFAULT}",
    )
    add("--share", type=share, metavar="PART", default=0.1, help=f"of the rows that memory is for {DEFAULT}")
    add(
        "--steps",
        type=count,
        metavar="N",
        help=f"of training; the first half fills the cache and is not counted (default: {FULL['steps']})",
    )
    add(
        "--backend",
        choices=["memory", "rocksdb"],
        default="memory",
        help=f"where the rows are that are not in the cache: rocksdb for more rows than memory holds {DEFAULT}",
    )
    add("--seed", type=seed, default=0, help=f"of the ids {DEFAULT}")
    arguments = vars(options.parse(argv))
    del arguments["quick"]
    json = arguments.pop("json")
    return Case(**arguments), json


if __name__ == "__main__":
    sys.exit(run(main))
