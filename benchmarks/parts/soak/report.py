"""What a process takes while it trains for hours, and whether that grows."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from common.measure import table
from common.resident import anonymous_bytes, resident_bytes, threads

MIB = 1 << 20
LEAST_SAMPLES = 8
MORE_DESCRIPTORS = 32
MORE_THREADS = 2


@dataclass(frozen=True)
class Sample:
    """What a process takes at some time.

    Args:
        seconds: since the first step.
        steps: so far.
        rows: of all tables.
        resident_bytes: of the process.
        anonymous_bytes: the same without what is a file's.
        descriptors: open ones.
        threads: of the process.
        disk_bytes: of the store's directory; what several checkpoints share counts once.
        step_median: seconds of a step since the sample before.
        step_p99: the same, 99th percentile.
    """

    seconds: float
    steps: int
    rows: int
    resident_bytes: int
    anonymous_bytes: int
    descriptors: int
    threads: int
    disk_bytes: int
    step_median: float
    step_p99: float

    @staticmethod
    def take(directory: Path, seconds: float, steps: int, rows: int, step_seconds: Sequence[float]) -> "Sample":
        """That of now."""
        step_median, step_p99 = np.percentile(step_seconds, [50, 99])
        return Sample(
            seconds=seconds,
            steps=steps,
            rows=rows,
            resident_bytes=resident_bytes(),
            anonymous_bytes=anonymous_bytes(),
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=threads(),
            disk_bytes=disk_bytes(directory),
            step_median=float(step_median),
            step_p99=float(step_p99),
        )


def disk_bytes(directory: Path) -> int:
    """What the files below take on the disk, each once, however many names it has."""
    blocks = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # compaction has removed it
                continue
            blocks[status.st_ino] = status.st_blocks
    return 512 * sum(blocks.values())


@dataclass(frozen=True)
class Figure:
    """A column of samples, and by how much it may grow."""

    name: str
    of: Callable[[Sample], float]
    digits: int = 0
    allowed: float | None = None

    def growth(self, samples: Sequence[Sample]) -> float:
        """From the median of the first quarter to that of the last."""
        quarter = len(samples) // 4
        return median(map(self.of, samples[-quarter:])) - median(map(self.of, samples[:quarter]))

    def grows(self, samples: Sequence[Sample]) -> bool:
        """By more than it may."""
        return self.allowed is not None and self.growth(samples) > self.allowed


def figures(memory_budget: int) -> list[Figure]:
    """All of them. Memory may grow by an eighth of the budget."""
    more = memory_budget / MIB / 8
    return [
        Figure("resident MiB", lambda sample: sample.resident_bytes / MIB, 1, more),
        Figure("anonymous MiB", lambda sample: sample.anonymous_bytes / MIB, 1, more),
        Figure("descriptors", lambda sample: sample.descriptors, 0, MORE_DESCRIPTORS),
        Figure("threads", lambda sample: sample.threads, 0, MORE_THREADS),
        Figure("disk MiB", lambda sample: sample.disk_bytes / MIB),
        Figure("rows", lambda sample: sample.rows),
        Figure("steps", lambda sample: sample.steps),
        Figure("ms/step", lambda sample: 1000 * sample.step_median, 2),
        Figure("ms/step, p99", lambda sample: 1000 * sample.step_p99, 2),
    ]


def in_words(samples: Sequence[Sample], memory_budget: int) -> str:
    """A table with a line for each figure, and what has grown."""
    header = ["", "", "first", "median", "last", "max", "growth", "allowed"]
    rows, verdicts = [], []
    for figure in figures(memory_budget):
        values = [figure.of(sample) for sample in samples]
        growth, allowed = figure.growth(samples), figure.allowed
        cells = [values[0], median(values), values[-1], max(values), growth, *([] if allowed is None else [allowed])]
        rows.append([figure.name, "", *(f"{cell:,.{figure.digits}f}" for cell in cells), *[""] * (6 - len(cells))])
        if figure.grows(samples):
            verdicts.append(f"GROWS: {figure.name}, by {growth:.{figure.digits}f} where {allowed:g} are allowed")
    return "\n".join([table(header, rows), "", *(verdicts or ["nothing grows that should not"])])


def grows(samples: Sequence[Sample], memory_budget: int) -> bool:
    """Whether anything does that should not."""
    return any(figure.grows(samples) for figure in figures(memory_budget))


def as_json(samples: Sequence[Sample], warm: Sequence[Sample], memory_budget: int) -> dict[str, Any]:
    growth = {
        figure.name: {"growth": figure.growth(warm), "allowed": figure.allowed} for figure in figures(memory_budget)
    }
    return {
        "samples": [asdict(sample) for sample in samples],
        "warm_samples": len(warm),
        "growth": growth,
        "grows": grows(warm, memory_budget),
    }
