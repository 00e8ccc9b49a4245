"""The time that rules like `Idle(days=30)` go by: the wall clock's, or that of a stream's events."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from damo_torchrec.errors import ClockWarning
from damo_torchrec.life import Idle

_MOST_NAMED = 3  # tables, in a warning


class Clock:
    """Seconds since any origin, read once for each update. The session's mutex guards it.

    A table's time never goes back: where the clock does so by more than may be jitter, the time stands, and goes on
    with the clock from there.

    Args:
        path: the store's, for messages.

    Attributes:
        function: what is asked for the time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest = -math.inf
        self._told_of_back = False
        self.function: Callable[[], float] = time.time

    def read(self) -> float:
        """The time. Raises TypeError or ValueError for what is none; whatever the function raises goes on."""
        seconds: object = self.function()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"the clock of the store {self._path} must return seconds, got {seconds!r}")
        if not math.isfinite(seconds):
            raise ValueError(f"the clock of the store {self._path} must return a finite number, got {seconds!r}")
        return float(seconds)

    def note(self, seconds: float, narrowest: float | None) -> bool:
        """Takes a reading that an update went by; returns whether it may be a leap ahead.

        Warns, once, of a clock that went back by more than may be jitter.

        Args:
            seconds: what was read.
            narrowest: the least time of all rules that go by time; None if there are none.
        """
        before, self._latest = self._latest, max(seconds, self._latest)
        if narrowest is None:
            return False
        if before - seconds > narrowest / 2:
            self._latest = seconds
            self._warn_of_back(before - seconds)
        return seconds - before > narrowest / 2

    def restart(self) -> None:
        """Says that what comes is not later than what was: the store has gone back to a state of another time."""
        self._latest = -math.inf

    def _warn_of_back(self, seconds: float) -> None:
        if self._told_of_back:
            return
        self._told_of_back = True
        warnings.warn(
            f"the clock of the store {self._path} has gone back by {seconds:.0f} seconds: no row gets younger, and "
            "rows age on as it goes on. Set store.clock before the first collection is made, and have it never go back",
            ClockWarning,
            stacklevel=2,
        )

    def warn_of_leap(self, seconds: float, less: Mapping[str, Idle]) -> None:
        """Says that the clock went ahead by `seconds` at once, and by which rules of tables less than that counts."""
        named = [f"{(rule.seconds or 0) / 2:.0f} by {rule} of table {table!r}" for table, rule in less.items()]
        more = f" and so on, for {len(named)} tables" if len(named) > _MOST_NAMED else ""
        warnings.warn(
            f"the clock of the store {self._path} has leapt ahead by {seconds:.0f} seconds, of which count: "
            f"{', '.join(named[:_MOST_NAMED])}{more}. No rows go for that alone. After a pause of the stream nothing "
            "is to be done; if the clock was wrong, set store.clock to one that is right, such as the time of the "
            "batch's events",
            ClockWarning,
            stacklevel=2,
        )
