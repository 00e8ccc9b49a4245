"""Statistics of timed rounds, and what has to be known about the machine that they come from."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# The 10th to the 90th percentile of a ratio over the rounds, relative to the ratio: beyond that a machine is too noisy.
NOISE_LIMIT = 0.30
# With fewer rounds nothing can be said about noise.
MIN_ROUNDS = 5
PACKAGES = ("damo-torchrec", "torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy")


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: Iterable[float]) -> "Spread":
        """That of at least one value; percentiles interpolate linearly between them."""
        p10, median, p90 = np.percentile(list(values), [10, 50, 90])
        return Spread(float(median), float(p10), float(p90))


@dataclass(frozen=True)
class Comparison:
    """How many times as long as ours a peer's step takes: over rounds, the ratio of the medians of a round's steps.

    Args:
        ratio: above 1, we are faster.
        rounds: how many there were.
    """

    ratio: Spread
    rounds: int

    @staticmethod
    def of(peer: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> "Comparison":
        """From the seconds of each step of each round."""
        ratios = [np.median(theirs) / np.median(mine) for theirs, mine in zip(peer, ours, strict=True)]
        return Comparison(Spread.of(ratios), len(ratios))

    @property
    def scatter(self) -> float:
        """Distance of the percentiles, relative to the ratio."""
        return (self.ratio.p90 - self.ratio.p10) / self.ratio.median

    @property
    def doubt(self) -> str | None:
        """Why the ratio is not to be relied on, if so."""
        if self.rounds < MIN_ROUNDS:
            return f"too few rounds to tell how noisy the machine is: {self.rounds}, take at least {MIN_ROUNDS}"
        if self.scatter > NOISE_LIMIT:
            return f"the machine was too noisy to tell: rounds differ by {self.scatter:.0%}"
        return None


def machine() -> dict[str, Any]:
    """Processor, memory and load. Linux only."""
    meminfo = _fields("/proc/meminfo")
    return {
        "cpu": _fields("/proc/cpuinfo").get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": _kilobytes(meminfo["MemTotal"]),
        "available_bytes": _kilobytes(meminfo["MemAvailable"]),
        "load": os.getloadavg()[0],
        "huge_pages": _huge_pages(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and the packages that take part, and the commit that is checked out, where it is known."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def describe(machine: dict[str, Any], versions: dict[str, str]) -> str:
    """Both, in two lines."""
    gib = 2**30
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / gib:.1f} GiB memory "
        f"({machine['available_bytes'] / gib:.1f} available), load {machine['load']:.1f}, "
        f"transparent huge pages {machine['huge_pages']}\n"
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need: the first two to the left, figures to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n")
    partial.replace(path)


def _fields(path: str) -> dict[str, str]:
    """`name: value` lines; of equal names the first."""
    fields: dict[str, str] = {}
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _huge_pages() -> str:
    """The system's choice among always, madvise (for memory that asks) and never."""
    choices = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not choices.exists():
        return "never"
    return choices.read_text().partition("[")[2].partition("]")[0]


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
