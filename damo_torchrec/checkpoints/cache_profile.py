"""What `StoreOptions.profile_cache` has found out, as a store's directory keeps it."""

from __future__ import annotations

import bisect
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from damo_torchrec import _core
from damo_torchrec.advice import Advice, CachePoint, advise
from damo_torchrec.checkpoints.document import dump_document, parse_document, read_document
from damo_torchrec.checkpoints.layout import CACHE_PROFILE_FILE
from damo_torchrec.checkpoints.origin import Origin
from damo_torchrec.checkpoints.rules import check_id
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import replace_file

_log = logging.getLogger(__name__)

_VERSION = 1
_TRAINING, _ELSE = range(2)

_BySample = list[list[int]]  # by sample, and use: training, and all else


@dataclass(frozen=True)
class CacheProfile:
    """Lookups, and what memory budgets of some sizes would have missed of them; ``cache_profile.json``.

    Figures are of all ids, each estimated from one sample of them. Budgets larger than all of these hold every row
    that was asked for, and miss what the last one does.

    Args:
        memory_budget: the store's, bytes.
        warm: whether figures are from the time after the caches have been filled.
        shift: one of ``2 ** shift`` ids is in one of the samples.
        ids: that were looked up, with their repetitions, in training and else.
        lookups: how many times.
        new_ids: of the ids, those that had no row.
        first_ids: those that had one, and came for the first time since the profile began.
        budgets: bytes, ascending.
        missed_ids: by budget: of the ids, those whose row was not there.
        missed_rows: these, each once a lookup.
        line: the id of the store's line of states, by ``origin.json``, once it is written; None where none is known.
    """

    memory_budget: int
    warm: bool
    shift: int
    ids: list[int]
    lookups: list[int]
    new_ids: _BySample
    first_ids: _BySample
    budgets: list[int]
    missed_ids: list[_BySample]
    missed_rows: list[_BySample]
    line: str | None = field(default=None, compare=False)

    @staticmethod
    def of(report: _core.CacheProfileReport, memory_budget: int) -> CacheProfile:
        """As the engine tells it."""
        counts = report.counts
        return CacheProfile(
            memory_budget=memory_budget,
            warm=report.warm,
            shift=report.shift,
            ids=list(counts.ids),
            lookups=list(counts.lookups),
            new_ids=[[missed.ids for missed in sample] for sample in counts.fresh],
            first_ids=[[missed.ids for missed in sample] for sample in counts.first],
            budgets=list(report.budgets),
            missed_ids=[[[missed.ids for missed in sample] for sample in size] for size in counts.missed],
            missed_rows=[[[missed.rows for missed in sample] for sample in size] for size in counts.missed],
        )

    def after(self, earlier: CacheProfile | None) -> CacheProfile:
        """The profile of both, of which `earlier` is another session's: what is not warm says nothing beside that."""
        if earlier is None or not (earlier.budgets and any(earlier.ids)):
            return self
        if not self.warm or not self.budgets:
            return replace(earlier, memory_budget=self.memory_budget)
        if not earlier.warm:
            return self
        budgets = sorted({*self.budgets, *earlier.budgets})

        def both(name: str) -> list[_BySample]:
            return [_sum(_at(self, name, size), _at(earlier, name, size)) for size in budgets]

        return replace(
            self,
            ids=[a + b for a, b in zip(self.ids, earlier.ids, strict=True)],
            lookups=[a + b for a, b in zip(self.lookups, earlier.lookups, strict=True)],
            new_ids=_sum(self.new_ids, earlier.new_ids),
            first_ids=_sum(self.first_ids, earlier.first_ids),
            budgets=budgets,
            missed_ids=both("missed_ids"),
            missed_rows=both("missed_rows"),
        )

    def points(self) -> list[CachePoint]:
        """What each budget comes to; none before training has looked anything up."""
        ids = self.ids[_TRAINING]
        if ids == 0:
            return []
        points = []
        for size, missed, rows in zip(self.budgets, self.missed_ids, self.missed_rows, strict=True):
            shares = [sample[_TRAINING] / ids for sample in missed]
            others = None
            if self.ids[_ELSE]:
                others = 1 - statistics.mean(sample[_ELSE] for sample in missed) / self.ids[_ELSE]
            points.append(
                CachePoint(
                    memory_budget=size,
                    hit_rate=_share(1 - statistics.mean(shares)),
                    error=statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0,
                    rows_read=statistics.mean(sample[_TRAINING] for sample in rows) / self.lookups[_TRAINING],
                    evaluation_hit_rate=None if others is None else _share(others),
                )
            )
        return points

    def advise(self) -> Advice:
        """Which budget to take. Raises ValueError before training has looked anything up."""
        points = self.points()
        if not points:
            raise ValueError("the cache's profile knows of no lookups in train mode yet: train with profile_cache=True")
        ids = self.ids[_TRAINING]
        own = _at(self, "missed_ids", self.memory_budget)
        if self.memory_budget not in self.budgets:
            rows = _at(self, "missed_rows", self.memory_budget)
            extended = replace(self, budgets=[self.memory_budget], missed_ids=[own], missed_rows=[rows])
            points = sorted([*points, *extended.points()], key=lambda point: point.memory_budget)
        return advise(
            points,
            self.memory_budget,
            new_ids=_share(statistics.mean(sample[_TRAINING] for sample in self.new_ids) / ids),
            first_ids=_share(statistics.mean(sample[_TRAINING] for sample in self.first_ids) / ids),
            warm=self.warm,
        )

    def check(self) -> None:
        """Raises ValueError if its lists do not fit each other."""
        if self.budgets != sorted({*self.budgets}) or not len(self.budgets) == len(self.missed_ids) == len(
            self.missed_rows
        ):
            raise ValueError("its budgets do not ascend, or have not all been counted for")
        samples = [self.new_ids, self.first_ids, *self.missed_ids, *self.missed_rows]
        if len({len(by_sample) for by_sample in samples}) != 1 or not self.new_ids:
            raise ValueError("its counts are not all of the same samples")
        uses = [self.ids, self.lookups, *(use for by_sample in samples for use in by_sample)]
        if any(len(by_use) != 2 or min(by_use) < 0 for by_use in uses):
            raise ValueError("its counts are not each two numbers from 0 on")
        if any(lookups == 0 < ids for ids, lookups in zip(self.ids, self.lookups, strict=True)):
            raise ValueError("it has ids of no lookups")
        if not 0 <= self.shift < 64 or self.memory_budget < 1:
            raise ValueError("its rate or its memory budget are out of range")
        if self.line is not None:
            check_id("line", self.line)

    def write(self, store: Path) -> None:
        """Makes it that of the store's directory, whole or not at all. Raises OutOfSpaceError or DamoError."""
        body = asdict(replace(self, line=_line(store)))
        document = dump_document("cache_profile", _VERSION, body, CacheProfile, CacheProfile.check)
        replace_file(store / CACHE_PROFILE_FILE, document.encode())

    @staticmethod
    def read(store: Path) -> CacheProfile | None:
        """That of a store's directory; None if it has none, or, with a warning, another store's.

        Raises:
            CorruptionError: it is damaged.
        """
        path = store / CACHE_PROFILE_FILE
        try:
            content = read_document(path)
            versions = range(_VERSION, _VERSION + 1)
            profile = parse_document(content, path, "cache_profile", versions, CacheProfile, CacheProfile.check)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except CorruptionError as error:
            raise CorruptionError(f"{error}; no row depends on {path.name}, which may be removed") from error.__cause__
        if None not in (profile.line, line := _line(store)) and profile.line != line:
            _log.warning("%s is ignored: it is the profile of another store; it may be removed", path)
            return None
        return profile


def no_profile(store: Path) -> str:
    """How to get one, where there is none."""
    return (
        f"the store {store} has no profile of its cache: train with "
        "EmbeddingStore(..., options=StoreOptions(profile_cache=True)), at least until each id that is used often has "
        "come some times, and then close() it or make a checkpoint"
    )


def _line(store: Path) -> str | None:
    """The id of the store's line of states; None if it says none. Raises CorruptionError."""
    origin = Origin.read(store)
    return origin.line or None if origin else None


def _share(share: float) -> float:
    """Within 0 and 1, where the estimate of a sample may come to be outside."""
    return min(max(share, 0.0), 1.0)


def _sum(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> _BySample:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(some, others, strict=True)]


def _at(profile: CacheProfile, name: str, budget: int) -> _BySample:
    """The counts of a budget, between those beside it where it is none of the profile's."""
    counts: list[_BySample] = getattr(profile, name)
    above = bisect.bisect_left(profile.budgets, budget)
    if above == len(profile.budgets):
        return counts[-1]
    if above == 0 or profile.budgets[above] == budget:
        return counts[above]
    below, high = profile.budgets[above - 1], profile.budgets[above]
    part = math.log(budget / below) / math.log(high / below)
    return [
        [round(a + part * (b - a)) for a, b in zip(x, y, strict=True)]
        for x, y in zip(counts[above - 1], counts[above], strict=True)
    ]
