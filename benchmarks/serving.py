#!/usr/bin/env python3
"""Times exported models: lookups beside a plain Gather, whole models beside torch's, exporting and loading; `--help`.

docs/serving.md describes the method.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.measure import table, write_json
from common.program import DEFAULT, QUIET, Options, begin, count, run
from common.resident import resident_bytes

FULL = {"rows": 100_000, "seconds": 2.0, "large_rows": 10_000_000}
QUICK = {"rows": 1_000, "seconds": 0.05, "large_rows": 10_000}
BATCHES = (1, 16, 256, 4096)
LATENCY_BATCHES = (1, 16, 256)
DISTINCT_IDS = 250_000
MOST_REQUESTS = 2000
LEAST_CALLS = 5
MIB = 2**20

DESCRIPTION = """\
Serves tables from ONNX files, by row number where others have no other way. Lookups alone: those of this
package, by standard operators and by its own kernels, a LabelEncoder before a Gather, and a plain Gather
of the same rows, which is what they are compared with. Then a DLRM: in torch, as torch.onnx exports it,
alone and behind a LabelEncoder, and as this package does. At last a table with many rows is exported and
loaded.
"""

EPILOG = """\
The store is in a temporary directory: $TMPDIR has to be on a disk with room for three times its rows.

examples:
  python benchmarks/serving.py
  python benchmarks/serving.py --quick
  python benchmarks/serving.py --large-rows 42_000_000 --large-dim 64
"""


def main() -> None:
    arguments = parse_arguments()
    os.environ.update(QUIET)  # before torch is imported
    import torch

    from parts.serving.models import Served, large_export

    torch.set_num_threads(arguments.threads)
    report = begin("serving") | {"options": {n: v for n, v in vars(arguments).items() if n != "json"}}
    with tempfile.TemporaryDirectory(prefix="damo-benchmark-") as name:
        directory = Path(name)
        served = Served(directory, arguments.tables, arguments.rows, arguments.dim, arguments.threads)
        try:
            print(f"\n{arguments.tables} tables of {arguments.rows:,} rows, dim {arguments.dim}\n")
            report["lookups"] = lookups(served, arguments.seconds)
            report["models"] = models(served, arguments.seconds)
        finally:
            served.close()
        del served
        gc.collect()
        began = time.perf_counter()
        file = large_export(directory, arguments.large_rows, arguments.large_dim, arguments.threads)
        report["large"] = load(file) | {"rows": arguments.large_rows, "seconds_to_make": time.perf_counter() - began}
        print(f"\n{large_in_words(report['large'])}")
    if arguments.json is not None:
        write_json(arguments.json, report)


def lookups(served: Any, seconds: float) -> list[dict[str, Any]]:
    contestants = {
        "Gather by row number": served.gather(),
        "LabelEncoder and Gather": served.label_encoder(),
        "standard operators": served.lookup(operators=False),
        "kernels": served.lookup(operators=True),
    }
    figures = []
    for ids_per_bag, batch, distinct in itertools.product((1, 5), BATCHES, (False, True)):
        number = distinct_requests(served.ids(batch, ids_per_bag)) if distinct else 1
        requests = [served.request(batch, ids_per_bag, seed) for seed in range(number)]
        calls = {name: in_turns([prepare(r) for r in requests]) for name, prepare in contestants.items()}
        times = race(calls, seconds)
        gather = float(np.median(times["Gather by row number"]))
        figures += [
            {
                "name": name,
                "batch": batch,
                "ids_per_bag": ids_per_bag,
                "requests": number,
                "median": float(np.median(taken)),
                "ratio": float(np.median(taken)) / gather,
            }
            for name, taken in times.items()
        ]
    header = ["lookup", "", "ids/bag", "batch", "requests", "ms", "÷ Gather"]
    rows = [
        [
            f["name"],
            "",
            *(str(f[n]) for n in ("ids_per_bag", "batch", "requests")),
            f"{1e3 * f['median']:.3f}",
            f"{f['ratio']:.2f}",
        ]
        for f in figures
    ]
    print(table(header, rows), flush=True)
    return figures


def distinct_requests(ids: int) -> int:
    """How many requests of so many ids touch more rows than the processor keeps."""
    return min(max(DISTINCT_IDS // ids, 2), MOST_REQUESTS)


def in_turns(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Each call of it is the next one of `calls`."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def models(served: Any, seconds: float) -> list[dict[str, Any]]:
    contestants = {
        "torch, by row number": served.eager(),
        "torch.onnx, by row number": served.plain_export(),
        "LabelEncoder and torch.onnx": served.label_encoded_export(),
        "standard operators": served.model(operators=False),
        "kernels": served.model(operators=True),
    }
    figures = []
    for batch in LATENCY_BATCHES:
        request = served.request(batch, 1, seed=batch)
        times = race({name: prepare(request) for name, prepare in contestants.items()}, seconds)
        figures += [
            {"name": name, "batch": batch, "p50": float(np.median(c)), "p99": float(np.percentile(c, 99))}
            for name, c in times.items()
        ]
    header = ["DLRM", "", "batch", "p50 ms", "p99 ms"]
    rows = [[f["name"], "", str(f["batch"]), f"{1e3 * f['p50']:.2f}", f"{1e3 * f['p99']:.2f}"] for f in figures]
    print(f"\n{table(header, rows)}", flush=True)
    return figures


def race(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call of each contestant, in turns, until every one has had `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    totals = dict.fromkeys(calls, 0.0)
    for call in calls.values():
        call()
    while waiting := [name for name in calls if totals[name] < seconds or len(times[name]) < LEAST_CALLS]:
        for name in waiting:
            began = time.perf_counter()
            calls[name]()
            taken = time.perf_counter() - began
            times[name].append(taken)
            totals[name] += taken
    return times


def load(file: Path) -> dict[str, float]:
    """What a session of it takes, and what a request after that."""
    import damo_torchrec as damo
    from parts.serving.models import STRIDE

    size = sum(path.stat().st_size for path in file.parent.rglob(f"{file.stem}*/*"))
    damo.onnx.session(file)  # what the library itself takes, once
    before = resident_bytes()
    began = time.perf_counter()
    session = damo.onnx.session(file)
    seconds = time.perf_counter() - began
    loaded = resident_bytes()
    ids = np.arange(1000, dtype=np.int64) * STRIDE
    session.run(None, {"features.values": ids, "features.lengths": np.ones((1, 1000), dtype=np.int64)})
    return {
        "bytes": size,
        "seconds": seconds,
        "resident_bytes": loaded - before,
        "resident_bytes_after_1000_ids": resident_bytes() - before,
    }


def large_in_words(large: dict[str, float]) -> str:
    return (
        f"{large['rows']:,} rows, {large['bytes'] / MIB:,.0f} MiB: made and exported in "
        f"{large['seconds_to_make']:.0f} s, "
        f"loaded in {large['seconds']:.3f} s, resident {large['resident_bytes'] / MIB:.1f} MiB, "
        f"{large['resident_bytes_after_1000_ids'] / MIB:.1f} MiB after 1,000 ids"
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    add = options.parser.add_argument
    add("--tables", type=count, metavar="N", default=26, help=f"how many {DEFAULT}")
    add("--rows", type=count, metavar="N", help=f"of each table (default: {FULL['rows']})")
    add("--dim", type=count, metavar="N", default=64, help=f"weights of a row {DEFAULT}")
    add("--threads", type=count, metavar="N", default=1, help=f"that a call may use {DEFAULT}")
    add("--seconds", type=float, metavar="S", help=f"of calls for each figure (default: {FULL['seconds']})")
    add("--large-rows", type=count, metavar="N", help=f"of the table to load (default: {FULL['large_rows']})")
    add("--large-dim", type=count, metavar="N", default=16, help=f"of its rows {DEFAULT}")
    return options.parse(argv)


if __name__ == "__main__":
    sys.exit(run(main))
