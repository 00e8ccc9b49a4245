"""What the benchmark programs have in common: options, the head of a report, and how they end."""

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.measure import describe, machine, versions
from common.turns import ContestantError

# Errors only: importing TorchRec has torch warn of what TorchRec calls.
QUIET = {"TORCH_LOGS": "-torch"}
DEFAULT = "(default: %(default)s)"


class RefusedError(RuntimeError):
    """What is asked for cannot be measured on this machine."""


class Options:
    """A parser that has `--quick` and `--json`.

    Args:
        description: of the program.
        epilog: what comes after the options.
        full: defaults of options, by name, which the program adds without one.
        quick: the same under `--quick`.
    """

    def __init__(self, description: str, epilog: str, full: Mapping[str, Any], quick: Mapping[str, Any]) -> None:
        self._defaults = {False: full, True: quick}
        self.parser = argparse.ArgumentParser(
            description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.parser.add_argument(
            "--quick", action="store_true", help=f"the same as {as_options(quick)}, where those are not given"
        )
        self.parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into FILE")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Ends the program if they are wrong."""
        arguments = self.parser.parse_args(argv)
        for name, value in self._defaults[arguments.quick].items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            self.parser.error(f"--json: there is no directory {arguments.json.absolute().parent}")
        return arguments


def begin(benchmark: str) -> dict[str, Any]:
    """Prints the machine and the versions, and returns the head of the report."""
    report = {
        "benchmark": benchmark,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
    }
    print(describe(report["machine"], report["versions"]), flush=True)
    return report


def run(program: Callable[[], object]) -> int:
    """Calls `program` and returns its exit status. However it ends, its context managers are left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        program()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ContestantError, RefusedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def as_options(values: Mapping[str, Any]) -> str:
    words = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return " ".join(words)


def count(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {number}")
    return number


def exponent(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and not negative, got {text}")
    return number


def share(text: str) -> float:
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return number
