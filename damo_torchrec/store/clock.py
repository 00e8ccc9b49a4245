"""The time that rules like `Idle(days=30)` go by: the wall clock's, or that of a stream's events."""

import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from damo_torchrec.errors import ClockWarning


class Clock:
    """Seconds since any origin, read once for each update. The session's mutex guards it.

    A table's time is the latest that the clock has ever said: it does not go back.

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

        Warns, once, of a clock that went back by more than that counts: until it is where it was, no rows age.

        Args:
            seconds: what was read.
            narrowest: the least time of all rules that go by time; None if there are none.
        """
        before, self._latest = self._latest, max(seconds, self._latest)
        if narrowest is None:
            return False
        if before - seconds > narrowest / 2 and not self._told_of_back:
            self._told_of_back = True
            warnings.warn(
                f"the clock of the store {self._path} has gone back by {before - seconds:.0f} seconds: rows do not age "
                "by time until it is where it was. Set store.clock before the first collection is made, and have it "
                "never go back",
                ClockWarning,
                stacklevel=2,
            )
        return seconds - before > narrowest / 2

    def warn_of_leap(self, table: str, seconds: float) -> None:
        """Says that `seconds` by which the clock went ahead at once are left out of a table's time."""
        warnings.warn(
            f"the clock of the store {self._path} has leapt ahead, of which {seconds:.0f} seconds do not count for "
            f"table {table!r}: no rows go for that alone. After a pause of the stream nothing is to be done; if the "
            "clock was wrong, set store.clock to one that is right, such as the time of the batch's events",
            ClockWarning,
            stacklevel=2,
        )
