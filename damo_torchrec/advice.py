"""How large a memory budget should be, from how often budgets of some sizes have the rows that are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What the advised budget may have fewer hits than the largest there is, and what the ids of unknown past may be.
MARGIN = 0.01


@dataclass(frozen=True)
class CachePoint:
    """What a memory budget comes to, by a simulation of the cache on a sample of the ids.

    Args:
        memory_budget: bytes.
        hit_rate: share of the ids that training looks up, with their repetitions, whose row is in memory by itself,
            without waiting and without prefetching: what `LookupStats.hit_rate` would be.
        error: of `hit_rate`, one standard error by the spread of several samples.
        rows_read: rows that a forward in train mode has to have read, each once.
        evaluation_hit_rate: `hit_rate` of all other lookups; None without any.
    """

    memory_budget: int
    hit_rate: float
    error: float
    rows_read: float
    evaluation_hit_rate: float | None = None


@dataclass(frozen=True)
class Advice:
    """What is known of budgets, and which to take. ``str()`` says it in words.

    Args:
        points: by ascending budget, two to each doubling, and the store's own. A larger one than the last has the hits
            of that: it holds every row that was asked for.
        memory_budget: the store's own.
        advised: the smallest budget within 1 % of the hits of the largest.
        new_ids: share of the ids looked up that had no row yet: no budget has them.
        first_ids: share of those that came for the first time since the profile began, and had a row. Whether it would
            have been in memory is not known; they count as misses.
        too_short: whether these are so many, or the caches simulated not full yet, that the profile says too little of
            the larger budgets.
    """

    points: tuple[CachePoint, ...]
    memory_budget: int
    advised: int
    new_ids: float
    first_ids: float
    too_short: bool

    @property
    def own(self) -> CachePoint:
        """That of the store's own budget."""
        return max((p for p in self.points if p.memory_budget <= self.memory_budget), key=lambda p: p.memory_budget)

    @property
    def best(self) -> CachePoint:
        """That of the advised budget."""
        return next(point for point in self.points if point.memory_budget >= self.advised)

    def __str__(self) -> str:
        said = [self._said(self.own, "This budget, ")]
        if self.advised != self.own.memory_budget:
            said.append(self._said(self.best, "enough, "))
        said.append("larger ones gain under 1 %")
        if self.new_ids >= 0.0005:
            said.append(f"{percent(self.new_ids)} are new ids, which no budget helps")
        text = "; ".join(said) + "."
        return f"{text} {self.warning}" if self.warning else text

    @property
    def warning(self) -> str | None:
        """What is doubtful about it."""
        if not self.too_short:
            return None
        why = "the caches that it simulates have not been filled yet"
        if self.first_ids > MARGIN:
            why = f"{percent(self.first_ids)} of the ids came for the first time since it began"
        return (
            f"The profile is too short: {why}, so that larger budgets may have more than is known. Train for longer "
            "with profile_cache=True."
        )

    @staticmethod
    def _said(point: CachePoint, which: str) -> str:
        size, hits = budget_text(point.memory_budget), percent(point.hit_rate)
        return (
            f"{which}{size}: {hits} ± {100 * point.error:.1f} of the ids are in memory, "
            f"{point.rows_read:,.0f} rows read a step"
        )


def advise(points: Sequence[CachePoint], memory_budget: int, *, new_ids: float, first_ids: float, warm: bool) -> Advice:
    """Chooses among `points`, which ascend. REQUIRES: there is one."""
    advised = next(p for p in points if p.hit_rate >= points[-1].hit_rate - MARGIN).memory_budget
    too_short = not warm or first_ids > MARGIN
    return Advice(tuple(points), memory_budget, advised, new_ids, first_ids, too_short)


def percent(share: float) -> str:
    """A share for people, as ``"91.2 %"``."""
    return f"{100 * share:.1f} %"


def budget_text(size: int) -> str:
    """A budget as `memory_budget` takes it, or nearly, as ``"1.5GiB"``."""
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.4g}{unit}"
    return f"{size}B"
