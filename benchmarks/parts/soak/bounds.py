"""What rows that come and go may take, in numbers that follow from the case, and where a run went beyond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from common.budget import STATE_SIZE, cache_share
from common.measure import table
from parts.soak.case import EndlessCase
from parts.soak.report import MIB, Sample

# Of a record in a table file: key, version, RocksDB's sequence number and lengths, and counters (docs/format.md).
RECORD_BYTES = 12 + 1 + 8 + 4 + 8
SIGHTING_BYTES = 33
# docs/design.md, "What rows leave behind on disk".
FILES_FACTOR = 1.5
# docs/design.md, "The journal".
JOURNAL_FACTOR, JOURNAL_BYTES = 3, 32 * MIB

# What each has to have removed in the end; else the run says nothing of it.
RULES = {
    "idle steps": "idle_by_steps",
    "idle time": "idle_by_time",
    "max_rows": "cut",
    "within_steps": "forgotten_sightings",
}


@dataclass(frozen=True)
class Lives:
    """What came and went in all tables so far.

    Args:
        sighted: ids that are seen and have no row yet, now.
        created: rows that were made.
        idle_by_steps: rows that went by the rule for those with one update.
        idle_by_time: rows that went by the rule for all.
        cut: rows that went as there were too many.
        forgotten_sightings: ids that were seen, and forgotten.
        file_bytes: of the live rows' files now.
    """

    sighted: int
    created: int
    idle_by_steps: int
    idle_by_time: int
    cut: int
    forgotten_sightings: int
    file_bytes: int


@dataclass
class RowRange:
    """The least and the most rows of any table after any step since the last sample."""

    least: int = 1 << 62
    most: int = 0

    def add(self, rows: Sequence[int]) -> None:
        self.least, self.most = min(self.least, *rows), max(self.most, *rows)


@dataclass(frozen=True)
class LifeSample:
    """What came and went until some time, and what it took.

    Args:
        steps: so far.
        least_rows: of any table after any step since the sample before.
        most_rows: likewise.
        rows: of all tables, now.
        lives: what came and went.
        disk_bytes: of the store's directory; what several checkpoints share counts once.
        resident_bytes: of the process, beyond what it had before it opened the store.
    """

    steps: int
    least_rows: int
    most_rows: int
    rows: int
    lives: Lives
    disk_bytes: int
    resident_bytes: int

    @staticmethod
    def of(sample: Sample, rows: RowRange, lives: Lives, resident_before: int) -> LifeSample:
        """That of the time of `sample`; before the store was opened the process had `resident_before`."""
        return LifeSample(
            steps=sample.steps,
            least_rows=rows.least,
            most_rows=rows.most,
            rows=sample.rows,
            lives=lives,
            disk_bytes=sample.disk_bytes,
            resident_bytes=sample.resident_bytes - resident_before,
        )


class Held(NamedTuple):
    """A bound, and what came nearest to it; where there is no `most`, none."""

    name: str
    found: float
    least: float
    most: float | None

    @property
    def broken(self) -> bool:
        return self.found < self.least or (self.most is not None and self.found > self.most)


def held(case: EndlessCase, samples: Sequence[LifeSample], warm: Sequence[LifeSample]) -> list[Held]:
    """Each bound, with the worst of the samples; `warm` are those since every table has had its first cut."""
    kept = case.rows - case.rows // 16
    # A cut takes whole updates, and so does a rule that comes between it and the next.
    slack = case.rows // 64 + case.batch_size
    files = max(warm, key=lambda sample: sample.lives.file_bytes / files_allowed(case, sample))
    disk = max(warm, key=lambda sample: sample.disk_bytes / disk_allowed(case, sample))
    memory = case.memory_budget + max(case.memory_budget // 10, 64 * MIB)
    return [
        *[Held(f"removed by {rule}", getattr(samples[-1].lives, field), 1, None) for rule, field in RULES.items()],
        Held("most rows of a table", max(sample.most_rows for sample in samples), 0, case.rows),
        Held("least rows of a table", min(sample.least_rows for sample in warm), kept - slack, case.rows),
        Held("files of live rows, MiB", files.lives.file_bytes / MIB, 0, files_allowed(case, files) / MIB),
        Held("disk with checkpoints, MiB", disk.disk_bytes / MIB, 0, disk_allowed(case, disk) / MIB),
        Held("memory of the store, MiB", max(sample.resident_bytes for sample in samples) / MIB, 0, memory / MIB),
    ]


def live_bytes(case: EndlessCase, sample: LifeSample) -> int:
    """What rows and sightings take in table files, if nothing else is there."""
    row = RECORD_BYTES + 4 * (case.dim + STATE_SIZE)
    return sample.rows * row + sample.lives.sighted * SIGHTING_BYTES


def files_allowed(case: EndlessCase, sample: LifeSample) -> float:
    """A third of the files may be dead. The newest rows are in the first levels besides: less than the budget."""
    return FILES_FACTOR * live_bytes(case, sample) + case.memory_budget


def disk_allowed(case: EndlessCase, sample: LifeSample) -> float:
    """Of the live rows and the checkpoints that are kept, and the next one (docs/reliability.md)."""
    journal = JOURNAL_FACTOR * cache_share(case.memory_budget) + JOURNAL_BYTES
    return (files_allowed(case, sample) + journal) * (case.keep + 2)


def in_words(held: Sequence[Held], lives: Lives) -> str:
    """A table with a line for each bound, and which are broken; and what came and went in all."""
    numbers = [["" if n is None else f"{n:,.0f}" for n in (one.found, one.least, one.most)] for one in held]
    rows = [[one.name, "", *figures] for one, figures in zip(held, numbers, strict=True)]
    broken = [f"BROKEN: {one.name}" for one in held if one.broken]
    came = ", ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in asdict(lives).items())
    verdicts = broken or ["every bound holds"]
    return "\n".join([table(["", "", "worst", "at least", "at most"], rows), "", came, "", *verdicts])


def as_json(held: Sequence[Held], samples: Sequence[LifeSample]) -> dict[str, Any]:
    return {
        "bounds": [bound._asdict() | {"broken": bound.broken} for bound in held],
        "lives": [asdict(sample) for sample in samples],
    }
