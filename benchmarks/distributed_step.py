#!/usr/bin/env python3
"""Times a step of tables that are spread over ranks, beside TorchRec's sharded by rows; `--help` tells the rest.

docs/distributed.md cites the figures.
"""

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.measure import Comparison, Spread, table, write_json
from common.program import DEFAULT, QUIET, Options, begin, count, exponent, run

FULL = {"rows": 100_000, "turns": 10, "steps": 10, "ranks": [1, 2, 4]}
QUICK = {"rows": 2_000, "turns": 2, "steps": 2, "ranks": [1, 2]}
TARGET = 1.1
SPREAD_OVER = (2, 4, 16, 64, 256)

DESCRIPTION = """\
Times one training step of pooled tables, lookup, backward and update, of 1, 2 and 4 processes of
this machine over gloo, all rows in memory, and counts the bytes that each sends. The peer is
TorchRec's EmbeddingBagCollection, sharded by rows over the same processes; the two take turns.
Then counts, by simulation, how evenly rows and lookups of Zipf-distributed ids spread over ranks.
"""


def main() -> None:
    options = Options(DESCRIPTION, "", FULL, QUICK)
    parser = options.parser
    parser.add_argument("--tables", type=count, default=8, help=DEFAULT)
    parser.add_argument("--rows", type=count, help="ids of each table")
    parser.add_argument("--dim", type=count, default=32, help=DEFAULT)
    parser.add_argument("--batch-size", type=count, default=512, help=f"samples of each rank {DEFAULT}")
    parser.add_argument("--bag", type=count, default=4, help=f"ids of each bag {DEFAULT}")
    parser.add_argument("--turns", type=count)
    parser.add_argument("--steps", type=count, help="in a turn")
    parser.add_argument("--ranks", type=count, nargs="+")
    parser.add_argument("--zipf", type=exponent, nargs="+", default=[1.05, 1.2], help=f"of simulated ids {DEFAULT}")
    arguments = options.parse(None)
    os.environ.update(QUIET)  # before torch is imported
    from parts.distributed.contest import Case

    names = ("tables", "rows", "dim", "batch_size", "bag", "turns", "steps")
    case = Case(**{name: getattr(arguments, name) for name in names})
    report = begin("distributed_step") | {"case": asdict(case)}
    print(f"\n{case}", flush=True)
    report["contests"] = [contest(case, ranks) for ranks in arguments.ranks]
    report["balance"] = balance(arguments.zipf, arguments.rows)
    if arguments.json is not None:
        write_json(arguments.json, report)


def contest(case: Any, ranks: int) -> dict[str, Any]:
    from torch import multiprocessing

    from parts.distributed.contest import OURS, TORCHRECS, serve

    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as directory:
        meet = str(Path(directory) / "meet")
        multiprocessing.spawn(serve, (ranks, meet, case, results), nprocs=ranks)
    seconds, sent = results.get()
    ratio = Comparison.of(seconds[OURS], seconds[TORCHRECS])  # above 1, TorchRec is faster
    of_step = {name: Spread.of([1000 * s for turn in turns for s in turn]) for name, turns in seconds.items()}
    rows = [[name, f"{of_step[name].median:.2f}", f"{sent[name]:,}"] for name in seconds]
    print(f"\n{ranks} ranks; by the formula {case.formula(ranks):,.0f} bytes\n")
    print(table(["", "ms/step", "bytes sent by a rank"], rows))
    verdict = "met" if ratio.ratio.median <= TARGET else "missed"
    doubt = f", BUT {ratio.doubt}" if ratio.doubt else ""
    print(
        f"\nours takes {ratio.ratio.median:.2f} times as long; the target of {TARGET} is {verdict}{doubt}", flush=True
    )
    return {"ranks": ranks, "seconds": seconds, "sent": sent, "ratio": asdict(ratio), "formula": case.formula(ranks)}


def balance(exponents: list[float], rows: int, batch: int = 65_536) -> list[dict[str, Any]]:
    import numpy as np

    from common.workload import Zipf, scatter
    from parts.distributed.balance import balance_of

    found, lines = [], []
    for zipf in exponents:
        for ranks in SPREAD_OVER:
            rng = np.random.default_rng(0)
            ids = [scatter(Zipf(10 * rows, zipf).sample(rng, batch * 16 // ranks), 0) for _ in range(ranks)]
            of = balance_of(ids, ranks)
            found.append({"zipf": zipf, "ranks": ranks, **asdict(of)})
            lines.append([str(zipf), str(ranks), *(f"{n:.3f}" for n in (of.rows, of.lookups, of.distinct, of.hottest))])
    print("\nThe busiest rank over the mean, of simulated ids\n")
    print(table(["Zipf", "ranks", "rows", "lookups", "once a batch", "hottest id's share"], lines))
    return found


if __name__ == "__main__":
    sys.exit(run(main))
