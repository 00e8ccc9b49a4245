"""What benchmarks/cold.py measured, in words and as JSON."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from common.budget import MIB
from common.entries import OURS
from common.measure import Comparison, Spread, table
from parts.cold.reading import DISK, RAW, Reading

if TYPE_CHECKING:
    from parts.cold.training import WriteBack

# The least ratio of our rate to another's, by whether I/O is direct.
TARGETS = {False: {RAW: 0.90}, True: {DISK: 0.75}}


@dataclass(frozen=True)
class Race:
    """What readers took.

    Args:
        direct_io: past the page cache.
        rows_per_batch: that each of them reads.
        memory_budget: of a store.
        turns: by name and setting of a reader.
    """

    direct_io: bool
    rows_per_batch: int
    memory_budget: int
    turns: dict[tuple[str, str], list[Reading]]

    def seconds(self, reader: tuple[str, str]) -> list[list[float]]:
        """Of each batch, by round."""
        return [turn.seconds for turn in self.turns[reader]]

    def rate(self, reader: tuple[str, str]) -> Spread:
        """Rows per second."""
        return Spread.of(self.rows_per_batch / s for s in itertools.chain.from_iterable(self.seconds(reader)))

    def blocks_per_row(self, reader: tuple[str, str]) -> float:
        """4 KiB blocks from the disk for each row, on average."""
        return mean(turn.blocks_per_row for turn in self.turns[reader])

    def comparisons(self) -> dict[tuple[str, str], dict[str, Comparison]]:
        """Our rate divided by another's, by our reader and the other's name."""
        others = [reader for reader in self.turns if reader[0] != OURS]
        return {
            ours: {other[0]: Comparison.of(self.seconds(other), self.seconds(ours)) for other in others}
            for ours in self.turns
            if ours[0] == OURS
        }

    def in_words(self) -> str:
        """A table, and a line for each target."""
        comparisons = self.comparisons()
        others = [name for name, _ in self.turns if name != OURS]
        header = ["", "", "4 KiB reads/row", "rows/s", "p10", "p90"]
        for other in others:
            header += [f"÷ {other}", "p10", "p90"]
        rows = []
        for reader in self.turns:
            ratios = [comparison.ratio for comparison in comparisons.get(reader, {}).values()]
            cells = [f"{self.blocks_per_row(reader):.2f}"]
            cells += [f"{value:,.0f}" for value in asdict(self.rate(reader)).values()]
            cells += [f"{value:.2f}" for ratio in ratios for value in asdict(ratio).values()]
            rows.append([*reader, *cells, *[""] * (len(header) - 2 - len(cells))])
        what = "direct I/O" if self.direct_io else "page cache"
        head = (
            f"{what}: {self.rows_per_batch:,} rows a batch, none in memory; budget {self.memory_budget / MIB:.0f} MiB"
        )
        return "\n".join([head, "", table(header, rows), "", *self._verdicts(comparisons)])

    def _verdicts(self, comparisons: dict[tuple[str, str], dict[str, Comparison]]) -> list[str]:
        lines = []
        for (name, setting), by_other in comparisons.items():
            for other, target in TARGETS[self.direct_io].items():
                ratio, doubt = by_other[other].ratio, by_other[other].doubt
                line = (
                    f"{name}, {setting}: {ratio.median:.2f} of the rate of {other} "
                    f"(rounds: {ratio.p10:.2f} to {ratio.p90:.2f}); "
                    f"the target of {target:.2f} is {'met' if ratio.median >= target else 'missed'}"
                )
                lines.append(f"{line}, BUT {doubt}" if doubt else line)
        return lines

    def as_json(self) -> dict[str, Any]:
        comparisons = self.comparisons()
        return {
            "rows_per_batch": self.rows_per_batch,
            "memory_budget": self.memory_budget,
            "readers": [
                {
                    "name": reader[0],
                    "setting": reader[1],
                    "rows_per_second": asdict(self.rate(reader)),
                    "blocks_per_row": self.blocks_per_row(reader),
                    "rounds": self.seconds(reader),
                    "times": {
                        other: asdict(comparison.ratio)
                        | {"target": TARGETS[self.direct_io].get(other), "doubt": comparison.doubt}
                        for other, comparison in comparisons.get(reader, {}).items()
                    },
                }
                for reader in self.turns
            ],
        }


def write_back_in_words(result: WriteBack) -> str:
    rate = Spread.of(result.rates)
    return "\n".join(
        [
            f"write-back: {len(result.rows)} × {result.steps} steps of training, memory budget "
            f"{result.memory_budget / MIB:.0f} MiB",
            "",
            f"{sum(result.rows):,} rows of {result.row_bytes} bytes written back, {rate.median:,.0f} a second "
            f"({rate.p10:,.0f} to {rate.p90:,.0f}) beside lookups and updates; "
            f"RocksDB alone writes {result.raw.rows_per_second:,.0f} a second",
            f"write amplification {result.amplification:.2f}: RocksDB wrote {result.bytes_written / MIB:,.0f} MiB",
        ]
    )


def write_back_as_json(result: WriteBack) -> dict[str, Any]:
    return asdict(result) | {
        "rows_per_second": asdict(Spread.of(result.rates)),
        "amplification": result.amplification,
    }
