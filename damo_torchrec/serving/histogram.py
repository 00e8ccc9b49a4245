"""A histogram of durations, in buckets whose bounds grow by a constant factor."""

import bisect
import threading
from dataclasses import dataclass, field

_LEAST = 1e-6  # seconds
_FACTOR = 2**0.25
BOUNDS = tuple(_LEAST * _FACTOR**i for i in range(105))  # up to 67 seconds


@dataclass(frozen=True)
class Latencies:
    """How long calls took.

    Args:
        bounds: of buckets, in seconds, ascending.
        counts: of calls that took no longer than the bound, but longer than the one before; and at the end of those
            that took longer than all.
        total: seconds, of all calls.
    """

    bounds: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    total: float

    @property
    def count(self) -> int:
        """Number of calls."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """Seconds that a share `q` of the calls took at most: the bound of its bucket, 19 % too high at most.

        0 without a call; infinite beyond the last bound.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must be in [0, 1], got {q}")
        rank, seen = q * self.count, 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            seen += count
            if seen >= rank and seen > 0:
                return bound
        return 0.0


class Histogram:
    """Counts durations. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BOUNDS) + 1)
        self._total = 0.0

    def add(self, seconds: float) -> None:
        """Counts a call that took so long."""
        bucket = bisect.bisect_left(BOUNDS, seconds)
        with self._lock:
            self._counts[bucket] += 1
            self._total += seconds

    def latencies(self) -> Latencies:
        """What was counted so far."""
        with self._lock:
            return Latencies(BOUNDS, tuple(self._counts), self._total)
