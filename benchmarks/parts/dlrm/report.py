"""The outcome of a race: as a table, in words about each target, and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.budget import MIB
from common.entries import OURS
from common.measure import Comparison, Spread, table
from common.report import best_settings
from common.turns import Turn
from common.workload import Workload
from parts.dlrm.race import FBGEMM
from parts.dlrm.roofs import Raw
from parts.dlrm.training import Outcome

# Of the dense part alone, with all rows in memory.
IN_MEMORY_TARGET = 0.93
# Of the roof, by whether direct I/O is used, and whether rows are read ahead.
ROOF_TARGETS = {(False, False): 0.90, (False, True): 0.90, (True, True): 0.85}
# The slowest steps may exceed those of the dense part by so many median steps.
LATENCY_TARGET = 5
WORST_STEPS = 10
# Memory beyond the budget.
MEMORY_TOLERANCE = (0.10, 64 * MIB)

HEADER = [
    *("", "", "samples/s", "p10", "p90", "mean", "÷ dense", "p10", "p90", "ms p99.9"),
    *("hit rate", "read/step", "written/step", "MiB grown", "of"),
]


@dataclass(frozen=True)
class Share:
    """A training's throughput, relative to a limit.

    Args:
        comparison: over rounds, of median steps.
        mean: of all steps.
        limit: median seconds of a step.
    """

    comparison: Comparison
    mean: float
    limit: float

    @staticmethod
    def of(outcome: Outcome, limit: Sequence[Sequence[float]]) -> "Share":
        """`limit`: seconds of each step of each round."""
        mean = np.mean(np.concatenate(limit)) / np.mean(np.concatenate(outcome.rounds))
        return Share(Comparison.of(limit, outcome.rounds), float(mean), float(np.median(np.concatenate(limit))))

    def against(self, target: float | None) -> str:
        """In words, with whether the target is met."""
        ratio = self.comparison.ratio
        text = f"{ratio.median:.1%} (rounds: {ratio.p10:.1%} to {ratio.p90:.1%}; by mean steps {self.mean:.1%})"
        if target is not None:
            text += f", target {target:.0%}: {'met' if ratio.median >= target else 'MISSED'}"
        return f"{text}, BUT {self.comparison.doubt}" if self.comparison.doubt else text


def samples_per_second(outcome: Outcome, workload: Workload) -> Spread:
    seconds = outcome.seconds
    size = workload.batch_size
    return Spread(size / seconds.median, size / seconds.p90, size / seconds.p10)


def of_dense(outcome: Outcome, dense: Outcome) -> Share:
    return Share.of(outcome, dense.rounds)


def of_roof(outcome: Outcome, dense: Outcome, rates: Raw) -> Share:
    return Share.of(outcome, [[rates.roof(outcome, seconds) for seconds in turn] for turn in dense.rounds])


def results_table(outcomes: list[Outcome], workload: Workload) -> str:
    rows = []
    for outcome in outcomes:
        speed = samples_per_second(outcome, workload)
        seconds = np.concatenate(outcome.rounds)
        ratio = of_dense(outcome, outcomes[0]).comparison.ratio if outcome is not outcomes[0] else None
        rows.append(
            [
                outcome.entry.name,
                outcome.entry.setting,
                *(f"{value:,.0f}" for value in (speed.median, speed.p10, speed.p90)),
                f"{workload.batch_size / seconds.mean():,.0f}",
                *([f"{value:.3f}" for value in (ratio.median, ratio.p10, ratio.p90)] if ratio else [""] * 3),
                f"{1000 * np.percentile(seconds, 99.9):.1f}",
                *store_columns(outcome),
            ]
        )
    return table(HEADER, rows)


def store_columns(outcome: Outcome) -> list[str]:
    use = outcome.use
    if use is None or outcome.budget is None:
        return [""] * 5
    memory = [f"{use.growth_bytes / MIB:,.0f}", f"{outcome.budget / MIB:,.0f}"]
    return [f"{use.hit_rate:.2%}", f"{use.rows_read:,.0f}", f"{use.rows_written:,.0f}", *memory]


def warm_up_in_words(outcome: Outcome, workload: Workload) -> str:
    assert outcome.warm_up is not None
    assert outcome.use is not None
    cached = outcome.use.cached_rows
    text = f"{outcome.entry.setting}: {cached:,} rows in memory ({cached / (workload.tables * workload.rows):.1%})"
    warm_up = outcome.warm_up
    if not warm_up.read:
        return text
    turnover = warm_up.window * sum(warm_up.read) / cached if cached else 0
    text += (
        f" after a warm-up of {warm_up.steps:,} steps, whose first {warm_up.window} read {warm_up.read[0]:,.0f} rows a "
        f"step and whose last ones {warm_up.read[-1]:,.0f}: {turnover:.1f} times what the cache holds"
    )
    return text if warm_up.steady else f"{text}; NOT in a steady state yet"


def verdicts(outcomes: list[Outcome], rates: dict[int, Raw], workload: Workload) -> list[str]:
    """A line for each target. `rates` are RocksDB's, by a contestant's place in `outcomes`."""
    dense = outcomes[0]
    lines = []
    for peer in best_settings([outcome for outcome in outcomes if outcome.entry.library == FBGEMM]):
        assert isinstance(peer, Outcome)
        lines.append(f"{peer.entry.name} at its best ({peer.entry.setting}), of the dense part alone: ")
        lines[-1] += of_dense(peer, dense).against(None)
    for place, outcome in enumerate(outcomes):
        if outcome.entry.library != OURS:
            continue
        if outcome.entry.percent == 100:
            lines.append(f"{outcome.entry.setting}, of the dense part alone: ")
            lines[-1] += of_dense(outcome, dense).against(IN_MEMORY_TARGET)
        if place in rates:
            lines.append(roof_in_words(outcome, dense, rates[place], workload))
        if outcome.latency is not None and dense.latency is not None:
            lines.append(latency_in_words(outcome, outcome.latency, dense.latency))
        lines += memory_in_words(outcome)
    return lines


def roof_in_words(outcome: Outcome, dense: Outcome, rates: Raw, workload: Workload) -> str:
    share = of_roof(outcome, dense, rates)
    target = ROOF_TARGETS.get((outcome.entry.direct_io, outcome.entry.depth > 0))
    text = f"MultiGet reads {rates.reads:,.0f} rows/s in batches of {rates.rows_read:,}"
    if outcome.entry.direct_io:
        text += f", while {rates.rows_written:,} are written for each"
    elif rates.writes:
        text += f", sorted writes {rates.writes:,.0f} rows/s in batches of {rates.rows_written:,}"
    return (
        f"{outcome.entry.setting}, of its roof of {workload.batch_size / share.limit:,.0f} samples/s ({text}): "
        f"{share.against(target)}"
    )


def latency_in_words(outcome: Outcome, ours: Turn, dense: Turn) -> str:
    excess = tail(ours) - tail(dense)
    allowed = LATENCY_TARGET * float(np.median(ours.seconds))
    worst = sorted(np.argsort(ours.seconds)[-WORST_STEPS:])
    steps = ", ".join(f"{1000 * ours.seconds[step]:.0f} at {ours.starts[step]:.1f} s" for step in worst)
    return (
        f"{outcome.entry.setting}, {len(ours.seconds):,} steps in a row: p99.9 {1000 * tail(ours):.0f} ms, "
        f"{1000 * excess:.0f} ms above the dense part's {1000 * tail(dense):.0f} ms, target {LATENCY_TARGET} median "
        f"steps, {1000 * allowed:.0f} ms: {'met' if excess <= allowed else 'MISSED'}\n"
        f"  its slowest steps, in ms: {steps}"
    )


def tail(turn: Turn) -> float:
    """The seconds that one step of 1,000 exceeds."""
    return float(np.percentile(turn.seconds, 99.9))


def memory_in_words(outcome: Outcome) -> list[str]:
    """A line where the process grew by more than its budget allows."""
    assert outcome.use is not None
    assert outcome.budget is not None
    share, least = MEMORY_TOLERANCE
    allowed = outcome.budget + max(share * outcome.budget, least)
    if outcome.use.growth_bytes <= allowed:
        return []
    return [
        f"{outcome.entry.setting}: the process grew by {outcome.use.growth_bytes / MIB:,.0f} MiB, MORE than its budget "
        f"of {outcome.budget / MIB:,.0f} MiB and a tolerance allow, {allowed / MIB:,.0f} MiB"
    ]


def as_json(outcomes: list[Outcome], rates: dict[int, Raw], workload: Workload) -> dict[str, Any]:
    dense = outcomes[0]
    contestants = []
    for place, outcome in enumerate(outcomes):
        share, roof = of_dense(outcome, dense), of_roof(outcome, dense, rates[place]) if place in rates else None
        contestants.append(
            {
                **asdict(outcome.entry),
                "budget_bytes": outcome.budget,
                "samples_per_second": asdict(samples_per_second(outcome, workload)),
                "of_dense": asdict(share) | {"doubt": share.comparison.doubt},
                "of_roof": asdict(roof) | {"doubt": roof.comparison.doubt} if roof else None,
                "raw": asdict(rates[place]) if place in rates else None,
                "warm_up": asdict(outcome.warm_up) if outcome.warm_up else None,
                "use": asdict(outcome.use) if outcome.use else None,
                "page_faults_per_step": outcome.page_faults,
                "resident_bytes": outcome.resident_bytes,
                "rounds": outcome.rounds,
                "starts": [turn.starts for turn in outcome.turns],
                "latency": asdict(outcome.latency) if outcome.latency else None,
            }
        )
    return {"workload": asdict(workload), "percent": outcomes[-1].entry.percent, "contestants": contestants}
