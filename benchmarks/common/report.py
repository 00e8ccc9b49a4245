"""The outcome of a race: as a table, in words, and as JSON."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from common.entries import Entry
from common.measure import Comparison, Spread, table
from common.turns import Turn
from common.workload import Workload


@dataclass(frozen=True)
class Result:
    """A contestant's turns."""

    entry: Entry
    turns: list[Turn]

    @property
    def rounds(self) -> list[list[float]]:
        """Seconds of each step, by round."""
        return [turn.seconds for turn in self.turns]

    @property
    def seconds(self) -> Spread:
        """Of a step."""
        return Spread.of(itertools.chain.from_iterable(self.rounds))

    @property
    def page_faults(self) -> float:
        """Of a step, on average."""
        return sum(turn.page_faults for turn in self.turns) / sum(map(len, self.rounds))

    @property
    def resident_bytes(self) -> int:
        """Of its process, in the end."""
        return self.turns[-1].resident_bytes


def in_words(results: list[Result]) -> str:
    """The table, and a line about each peer under the better of its settings."""
    ours, *peers = results
    header = ["", "", "ms/step", "p10", "p90", "faults/step", "GiB resident", "÷ ours", "p10", "p90"]
    rows = []
    for result in results:
        times = [f"{1000 * seconds:.2f}" for seconds in asdict(result.seconds).values()]
        ratio = asdict(Comparison.of(result.rounds, ours.rounds).ratio).values() if result is not ours else ()
        ratios = [f"{value:.2f}" for value in ratio] or [""] * 3
        memory = [f"{result.page_faults:.0f}", f"{result.resident_bytes / 2**30:.2f}"]
        rows.append([result.entry.name, result.entry.setting, *times, *memory, *ratios])
    return "\n".join([table(header, rows), "", *(verdict(best, ours) for best in best_settings(peers))])


def best_settings(peers: list[Result]) -> list[Result]:
    """The faster setting of each peer."""
    by_name = itertools.groupby(peers, key=lambda result: result.entry.name)
    return [min(settings, key=lambda result: result.seconds.median) for _, settings in by_name]


def verdict(peer: Result, ours: Result) -> str:
    comparison = Comparison.of(peer.rounds, ours.rounds)
    ratio = comparison.ratio
    text = (
        f"{peer.entry.name} at its best ({peer.entry.setting}) takes {ratio.median:.2f} times as long as "
        f"{ours.entry.name} (rounds: {ratio.p10:.2f} to {ratio.p90:.2f})"
    )
    return f"{text}, BUT {comparison.doubt}" if comparison.doubt else text


def as_json(workload: Workload, results: list[Result]) -> dict[str, Any]:
    ours = results[0]
    contestants = []
    for result in results:
        comparison = Comparison.of(result.rounds, ours.rounds)
        contestants.append(
            {
                **asdict(result.entry),
                "step_seconds": asdict(result.seconds),
                "page_faults_per_step": result.page_faults,
                "resident_bytes": result.resident_bytes,
                "times_ours": asdict(comparison.ratio),
                "doubt": comparison.doubt,
                "rounds": result.rounds,
            }
        )
    return {"workload": asdict(workload), "contestants": contestants}
