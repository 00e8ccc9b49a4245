#!/usr/bin/env python3
"""Trains under a memory limit while ids grow in number: who is killed, and at how many; `--help` tells the rest."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.budget import MIB
from common.measure import table, write_json
from common.program import DEFAULT, Options, RefusedError, begin, count, run

FULL = {"rows": 4_000_000, "limit": 768, "budget": 128}
QUICK = {"rows": 1_500_000, "limit": 512, "budget": 64}
POLL_SECONDS = 0.01
NAMES = {"ours": "damo_torchrec", "torch": "nn.EmbeddingBag"}
GROWING = Path(__file__).parent / "parts" / "memory_limit" / "growing.py"

DESCRIPTION = """\
Trains rows of ids of which half of a step's are new, by nn.EmbeddingBag and by ours, each in a process
that is killed as soon as its own memory is above a limit: what the kernel does in a container. Counted is
RssAnon, the memory that cannot be had again from files; of the page cache the system takes back what it
needs. nn.EmbeddingBag has it as easy as can be: SGD without state, a matrix whose rows take no memory until
they are used, and row numbers in place of ids.
"""

EPILOG = """\
examples:
  python benchmarks/memory_limit.py --json docs/images/memory.json
  python benchmarks/memory_limit.py --quick
"""


@dataclass
class Growth:
    """A contestant's way: `points` are rows and bytes, after steps; `killed` is the number of rows, or None."""

    name: str
    points: list[tuple[int, int]] = field(default_factory=list)
    killed: int | None = None
    seconds: float = 0.0


def main() -> None:
    arguments = parse_arguments()
    report = begin("memory_limit") | {"options": {n: v for n, v in vars(arguments).items() if n != "json"}}
    growths = [grown(contestant, arguments) for contestant in NAMES]
    report["contestants"] = [asdict(growth) for growth in growths]
    print(f"\n{in_words(growths, arguments.limit)}")
    if arguments.json is not None:
        write_json(arguments.json, report)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    options = Options(DESCRIPTION, EPILOG, FULL, QUICK)
    options.parser.add_argument("--rows", type=count, help=f"ids in the end (default: {FULL['rows']})")
    options.parser.add_argument("--new", type=count, default=40_000, help=f"new ids of a step, and old ones {DEFAULT}")
    options.parser.add_argument("--dim", type=count, default=64, help=f"of a row {DEFAULT}")
    options.parser.add_argument("--limit", type=count, metavar="MIB", help=f"of memory (default: {FULL['limit']})")
    options.parser.add_argument("--budget", type=count, metavar="MIB", help=f"of ours (default: {FULL['budget']})")
    return options.parse(argv)


def grown(contestant: str, arguments: argparse.Namespace) -> Growth:
    """Has a contestant train until it has all rows, or is killed."""
    numbers = (arguments.rows, arguments.new, arguments.dim, arguments.budget * MIB)
    command = [sys.executable, str(GROWING), contestant, *map(str, numbers)]
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    growth = Growth(NAMES[contestant])
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **paths}) as process:
        assert process.stdout is not None
        watcher = threading.Thread(target=kill_beyond, args=(process, arguments.limit * MIB))
        watcher.start()
        for line in process.stdout:
            if (taken := memory_of(process.pid)) is not None:
                growth.points.append((int(line), taken))
        status = process.wait()
        watcher.join()
    growth.seconds = time.monotonic() - start
    if status == -signal.SIGKILL:
        growth.killed = growth.points[-1][0] if growth.points else 0
    elif status != 0:
        raise RefusedError(f"{NAMES[contestant]} ended with status {status}")
    return growth


def kill_beyond(process: "subprocess.Popen[str]", limit: int) -> None:
    """Until it ends, looks at its memory, and kills it when that is too much."""
    while process.poll() is None:
        taken = memory_of(process.pid)
        if taken is not None and taken > limit:
            process.kill()
            return
        time.sleep(POLL_SECONDS)


def memory_of(pid: int) -> int | None:
    """A process' anonymous memory in bytes; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else None


def in_words(growths: list[Growth], limit: int) -> str:
    rows = [
        (
            growth.name,
            f"killed above {limit:,} MiB" if growth.killed is not None else "done",
            f"{growth.points[-1][0]:,}" if growth.points else "0",
            f"{max((taken for _, taken in growth.points), default=0) / MIB:,.0f}",
            f"{growth.seconds:.0f}",
        )
        for growth in growths
    ]
    return table(["", "end", "rows", "MiB at most", "seconds"], rows)


if __name__ == "__main__":
    sys.exit(run(main))
