"""What benchmarks/scale.py measured, in words and as JSON."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.measure import Comparison, Spread, table
from common.turns import Turn
from parts.scale.case import Case

MIB, GIB = 1 << 20, 1 << 30
# How many times as long a step may take as one of the smallest table.
FLAT = 1.2
# Hit rates further apart than this do not compare.
HIT_RATE_TOLERANCE = 0.01
OPENING_TARGET = 1.0  # seconds


@dataclass(frozen=True)
class Result:
    """What was measured of one size.

    Args:
        case: the table.
        load_seconds: that it took to fill.
        disk_bytes: of its files then.
        turns: of training.
        hit_rate: in them.
        growth: of the process, at most, while it trained and while it made a checkpoint: bytes.
        checkpoint_seconds: for that.
    """

    case: Case
    load_seconds: float
    disk_bytes: int
    turns: list[Turn]
    hit_rate: float
    growth: dict[str, int]
    checkpoint_seconds: float

    @property
    def rounds(self) -> list[list[float]]:
        """Seconds of each step, by round."""
        return [turn.seconds for turn in self.turns]

    @property
    def seconds(self) -> list[float]:
        """Of each step."""
        return list(itertools.chain.from_iterable(self.rounds))

    @property
    def allowed_growth(self) -> int:
        """Bytes: the budget and a margin."""
        budget = self.case.memory_budget
        return budget + max(budget // 10, 64 * MIB)

    def times(self, smallest: "Result") -> Comparison:
        """How many times as long a step takes."""
        return Comparison.of(self.rounds, smallest.rounds)

    def doubt(self, smallest: "Result") -> str | None:
        """Why the times are not to be relied on, if so."""
        if abs(self.hit_rate - smallest.hit_rate) > HIT_RATE_TOLERANCE:
            return f"hit rates differ: {self.hit_rate:.2%} and {smallest.hit_rate:.2%}"
        return self.times(smallest).doubt


def in_words(results: Sequence[Result]) -> str:
    """A table with a line for each size, and a line for each target."""
    smallest, *others = results
    header = ["", "", "hit rate", "ms/step", "p10", "p90", "mean", "÷ first", "p10", "p90"]
    header += ["MiB, training", "checkpoint", "allowed", "checkpoint s"]
    rows = []
    for result in results:
        of_step = [*asdict(Spread.of(result.seconds)).values(), sum(result.seconds) / len(result.seconds)]
        ratio = asdict(result.times(smallest).ratio).values() if result is not smallest else ()
        rows.append(
            [
                f"{result.case.rows:,} rows",
                f"{result.case.times_budget:.3g} × budget",
                f"{result.hit_rate:.2%}",
                *(f"{1000 * seconds:.2f}" for seconds in of_step),
                *([f"{value:.2f}" for value in ratio] or [""] * 3),
                *(f"{growth / MIB:.0f}" for growth in (*result.growth.values(), result.allowed_growth)),
                f"{result.checkpoint_seconds:.2f}",
            ]
        )
    lines = [flatness(result, smallest) for result in others] + [memory(result) for result in results]
    return "\n".join([table(header, rows), "", *lines])


def flatness(result: Result, smallest: Result) -> str:
    ratio = result.times(smallest).ratio
    doubt = result.doubt(smallest)
    text = (
        f"a step over {result.case.rows:,} rows takes {ratio.median:.2f} times as long as over {smallest.case.rows:,} "
        f"(rounds: {ratio.p10:.2f} to {ratio.p90:.2f}); the target of at most {FLAT} is {met(ratio.median <= FLAT)}"
    )
    return f"{text}, BUT {doubt}" if doubt else text


def memory(result: Result) -> str:
    growth = max(result.growth.values())
    return (
        f"with {result.case.rows:,} rows the process grew by {growth / MIB:.0f} MiB; the target of at most "
        f"{result.allowed_growth / MIB:.0f} MiB is {met(growth <= result.allowed_growth)}"
    )


def opening_in_words(disk_bytes: int, openings: dict[str, list[float]]) -> str:
    lines = []
    for where, seconds in openings.items():
        spread = Spread.of(seconds)
        lines.append(
            f"a store of {disk_bytes / GIB:.2f} GiB, files {where}, opens and answers in {spread.median:.3f} s "
            f"({spread.p10:.3f} to {spread.p90:.3f}); the target of at most {OPENING_TARGET:g} s is "
            f"{met(spread.median <= OPENING_TARGET)}"
        )
    return "\n".join(lines)


def met(holds: bool) -> str:
    return "met" if holds else "missed"


def opening_as_json(disk_bytes: int, openings: dict[str, list[float]]) -> dict[str, Any]:
    seconds = {where: asdict(Spread.of(each)) | {"each": each} for where, each in openings.items()}
    return {"disk_bytes": disk_bytes, "seconds": seconds, "target": OPENING_TARGET}


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {
            "case": asdict(result.case),
            "table_bytes": result.case.table_bytes,
            "disk_bytes": result.disk_bytes,
            "load_seconds": result.load_seconds,
            "hit_rate": result.hit_rate,
            "step_seconds": asdict(Spread.of(result.seconds)),
            "times_first": asdict(result.times(results[0]).ratio),
            "target": FLAT,
            "doubt": result.doubt(results[0]),
            "growth_bytes": result.growth,
            "allowed_growth_bytes": result.allowed_growth,
            "checkpoint_seconds": result.checkpoint_seconds,
            "rounds": result.rounds,
        }
        for result in results
    ]
