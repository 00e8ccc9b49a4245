"""How long rows live, and which ids get one: what the options of a table say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from damo_torchrec import _core

_MOST_STEPS = 2**32 - 1
_MOST_ROWS = 2**63 - 1
_MOST_SIGHTINGS = 2**31 - 1
_MOST_SECONDS = 100 * 366 * 86400.0
_UNITS = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")


def _check_int(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be in {least}..{most}, got {value}")


@dataclass(frozen=True, kw_only=True)
class Admit:
    """When an id gets a row: at the update by which it has been seen so often.

    Each occurrence in an applied backward counts, also several in one batch. Until then the id reads as unseen, and no
    optimizer runs for it. What was seen is counted exactly, in a record of its own on disk.

    Args:
        sightings: how many; 1 gives every id its row at once.
        probability: by which an occurrence counts, drawn reproducibly.
        within_steps: an id that was not seen for so many updates of the table is forgotten; None for never.
    """

    sightings: int
    probability: float = 1.0
    within_steps: int | None = 1_000_000

    def __post_init__(self) -> None:
        _check_int("Admit: sightings", self.sightings, 1, _MOST_SIGHTINGS)
        _check_number("Admit: probability", self.probability)
        if not 0 < self.probability <= 1:
            raise ValueError(f"Admit: probability must be above 0 and at most 1, got {self.probability!r}")
        if self.within_steps is not None:
            _check_int("Admit: within_steps", self.within_steps, 1, _MOST_STEPS)


ALL_IDS = Admit(sightings=1)


@dataclass(frozen=True, init=False, repr=False)
class Idle:
    """Rows that have not been updated for so long go. Exactly one duration is given.

    Reading is no update. A row goes after its time, and up to 1/256 of it later, never sooner.

    Args:
        steps: updates of the table.
        days: of the store's `clock`; `hours`, `minutes` and `seconds` likewise. Kept as `seconds`.
        below_count: only rows with fewer updates, a power of two; None for all rows. A row that was set counts from 0.

    Raises:
        ValueError: there is no duration, or more than one, or one that is not positive; `below_count` is no power of
            two.
    """

    steps: int | None = None
    seconds: float | None = None
    below_count: int | None = None

    def __init__(
        self,
        *,
        steps: int | None = None,
        days: float | None = None,
        hours: float | None = None,
        minutes: float | None = None,
        seconds: float | None = None,
        below_count: int | None = None,
    ) -> None:
        times = {"days": days, "hours": hours, "minutes": minutes, "seconds": seconds}
        given = {name: value for name, value in {"steps": steps, **times}.items() if value is not None}
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"Idle takes exactly one of steps, days, hours, minutes and seconds, got {got}")
        ((unit, value),) = given.items()
        total = None
        if unit == "steps":
            _check_int("Idle: steps", value, 1, _MOST_STEPS)
        else:
            _check_number(f"Idle: {unit}", value)
            total = float(value) * _UNITS[unit]
            if not 0 < total <= _MOST_SECONDS:
                raise ValueError(f"Idle: {unit} must be positive, and at most a hundred years, got {value!r}")
        if below_count is not None:
            check_below_count(below_count)
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "seconds", total)
        object.__setattr__(self, "below_count", below_count)

    def __repr__(self) -> str:
        duration = f"steps={self.steps}"
        if self.seconds is not None:
            unit = next(name for name, size in _UNITS.items() if self.seconds % size == 0 or size == 1)
            duration = f"{unit}={self.seconds / _UNITS[unit]:.15g}"
        return f"Idle({duration})" if self.below_count is None else f"Idle({duration}, below_count={self.below_count})"


@dataclass(frozen=True)
class Life:
    """What decides how long the rows of a table live, all of it: what is in force. By default they live for ever.

    `AskedLife` says what the fields mean; `max_rows` is None for any number, `keep_rows` for 15/16 of `max_rows`.
    """

    admit: Admit = ALL_IDS
    expire: list[Idle] = field(default_factory=list)
    min_rows: int = 0
    max_rows: int | None = None
    keep_rows: int | None = None
    credit: int = 0

    def __post_init__(self) -> None:
        if self.max_rows is None:
            for name in ("keep_rows", "credit"):
                if getattr(self, name):
                    raise ValueError(f"{name} says how max_rows is kept to: it needs max_rows, which there is not")
        elif self.keep_rows is not None and self.keep_rows > self.max_rows:
            raise ValueError(f"keep_rows must be at most max_rows, which is {self.max_rows}, got {self.keep_rows}")
        if self.max_rows is not None and self.min_rows > self.max_rows:
            raise ValueError(f"min_rows must be at most max_rows, which is {self.max_rows}, got {self.min_rows}")
        for name, least in (("min_rows", 0), ("max_rows", 1), ("keep_rows", 1)):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), least, _MOST_ROWS)
        _check_int("credit", self.credit, 0, _MOST_STEPS)

    def kept_rows(self) -> int | None:
        """How many rows a cut leaves; None where there are no cuts."""
        if self.max_rows is None:
            return None
        return self.max_rows - self.max_rows // 16 if self.keep_rows is None else self.keep_rows

    @cached_property
    def narrowest_rule(self) -> Idle | None:
        """Of the rules that go by time the one with the least; None if there are none."""
        return min((rule for rule in self.expire if rule.seconds), key=lambda rule: rule.seconds or 0, default=None)

    def to_core(self) -> _core.LifeOptions:
        """The engine's form of it."""
        return _core.LifeOptions(
            sightings=self.admit.sightings,
            probability=self.admit.probability,
            within_steps=self.admit.within_steps or 0,
            idle=[(rule.steps or 0, rule.seconds or 0.0, rule.below_count or 0) for rule in self.expire],
            min_rows=self.min_rows,
            max_rows=self.max_rows,
            keep_rows=self.kept_rows(),
            credit=self.credit,
        )

    def __str__(self) -> str:
        default = Life()
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        others = [f"{name}={value!r}" for name, value in said.items() if value != getattr(default, name)]
        return ", ".join(others) or "no rule: every id gets a row, which stays"


@dataclass(frozen=True, kw_only=True)
class AskedLife:
    """What a program asks of a table's life. None is for what the table has; `TableOptions` says what the fields mean.

    Raises:
        TypeError, ValueError: one of them is of another type, or out of its range.
    """

    admit: Admit | None = None
    expire: Sequence[Idle] | None = None
    min_rows: int | None = None
    max_rows: int | float | None = None
    keep_rows: int | None = None
    credit: int | None = None

    def __post_init__(self) -> None:
        if self.admit is not None and not isinstance(self.admit, Admit):
            raise TypeError(f"admit must be a damo.Admit or None, got {self.admit!r}")
        if self.expire is not None:
            object.__setattr__(self, "expire", _rules(self.expire))
        if self.min_rows is not None:
            _check_int("min_rows", self.min_rows, 0, _MOST_ROWS)
        if self.max_rows == 0:
            raise ValueError('max_rows must be at least 1, got 0; float("inf") is for any number of rows')
        if self.max_rows is not None and self.max_rows != math.inf:
            _check_int("max_rows", self.max_rows, 1, _MOST_ROWS)
        if self.keep_rows is not None:
            _check_int("keep_rows", self.keep_rows, 1, _MOST_ROWS)
        if self.credit is not None:
            _check_int("credit", self.credit, 0, _MOST_STEPS)

    def over(self, life: Life) -> Life:
        """What is in force where a table that has `life` is asked this. Raises ValueError if that contradicts itself.

        With another `max_rows`, `keep_rows` is of that; without any, there is no `credit`.
        """
        max_rows, keep_rows = life.max_rows, life.keep_rows
        if self.max_rows is not None:
            max_rows = None if self.max_rows == math.inf else int(self.max_rows)
            keep_rows = life.keep_rows if max_rows == life.max_rows else None
        return Life(
            admit=self.admit or life.admit,
            expire=life.expire if self.expire is None else list(self.expire),
            min_rows=life.min_rows if self.min_rows is None else self.min_rows,
            max_rows=max_rows,
            keep_rows=keep_rows if self.keep_rows is None else self.keep_rows,
            credit=(life.credit if max_rows is not None else 0) if self.credit is None else self.credit,
        )

    def difference(self, other: AskedLife) -> str:
        """In what both ask, but not for the same; empty if they agree."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return ", and ".join(
            f"{name} {one!r}, got {another!r}"
            for name, one, another in pairs
            if one is not None and another is not None and one != another
        )

    def joined_with(self, other: AskedLife) -> AskedLife:
        """What both ask. REQUIRES: they agree."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return AskedLife(**{n: value if value is not None else getattr(other, n) for n, value in values.items()})

    @property
    def asks_nothing(self) -> bool:
        """Whether all of it is as the table has it."""
        return self == ASKS_NOTHING


ASKS_NOTHING = AskedLife()


def check_below_count(count: object) -> None:
    """Raises ValueError for what is no power of two: rows are told apart by the powers of two that counts reach."""
    _check_int("Idle: below_count", count, 1, 2**31)
    assert isinstance(count, int)
    if count & (count - 1):
        below = 1 << (count.bit_length() - 1)
        raise ValueError(
            f"Idle: below_count must be a power of two, got {count}: the nearest are {below} and {2 * below}"
        )


def _rules(expire: object) -> tuple[Idle, ...]:
    what = "expire must be a list of damo.Idle, or [] for none"
    if isinstance(expire, Idle):
        raise TypeError(f"{what}, got one by itself: [{expire!r}]")
    if isinstance(expire, str) or not isinstance(expire, Sequence):
        raise TypeError(f"{what}, got {expire!r}")
    for rule in expire:
        if not isinstance(rule, Idle):
            raise TypeError(f"{what}, got one with {rule!r}")
    if len(set(expire)) < len(expire):
        raise ValueError(f"expire has a rule twice: {list(expire)}")
    return tuple(expire)
