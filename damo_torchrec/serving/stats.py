"""What `Predictor.stats` returns."""

from dataclasses import dataclass

from damo_torchrec.serving.histogram import Latencies
from damo_torchrec.serving.place import Following


@dataclass(frozen=True)
class PredictorStats:
    """Figures of a predictor since it was made.

    Args:
        latencies: of requests that were answered, in `predict`.
        hits: ids, with repetitions, whose rows were in memory.
        misses: and those that were not.
        memory_bytes: memory that rows take now.
        memory_budget: what they may take.
        step: of the rows that are served.
        history: ids of the checkpoint and of the deltas that were applied to it, oldest first.
        deltas_applied: how many.
        last_delta_step: of the last one; None if there was none.
        last_delta_time: when it was applied, in seconds since 1970.
        passed_over: entries of watched directories that are no deltas, or are refused, as of the last look; the log
            tells each once.
        following: how far what is served is behind what is published, and whether it can get there.
        age: seconds since what is served was exported or published; None if that does not say when it was.
    """

    latencies: Latencies
    hits: int
    misses: int
    memory_bytes: int
    memory_budget: int
    step: int
    history: tuple[str, ...]
    deltas_applied: int
    last_delta_step: int | None
    last_delta_time: float | None
    passed_over: int
    following: Following
    age: float | None

    @property
    def requests(self) -> int:
        """Requests that were answered."""
        return self.latencies.count

    @property
    def rows(self) -> int:
        """Rows that were looked up."""
        return self.hits + self.misses

    @property
    def p50(self) -> float:
        """Median of the time of a request, in seconds."""
        return self.latencies.quantile(0.5)

    @property
    def p99(self) -> float:
        """99th percentile of the time of a request, in seconds."""
        return self.latencies.quantile(0.99)
