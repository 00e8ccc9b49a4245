"""What a server serves: what model is served, with which settings, and the figures that /metrics tells."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from damo_torchrec.errors import StoreClosedError
from damo_torchrec.server.batching import Batcher, Join, joinable
from damo_torchrec.server.gate import Access
from damo_torchrec.server.json_bodies import Limits
from damo_torchrec.serving import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is served, and how."""

    checkpoint: Path
    memory_budget: str = "1GiB"
    num_threads: int | None = None
    watch: Path | None = None
    poll_seconds: float = 1.0
    batch_samples: int = 256
    batch_seconds: float = 0.001
    workers: int = 2
    waiting_samples: int = 16_384
    join: Join = "auto"
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)


class Model:
    """The predictor that answers, behind its batcher. Another takes its place between two requests."""

    def __init__(self, settings: Settings, metrics: "Metrics") -> None:
        self.settings = settings
        self.metrics = metrics
        self.batcher: Batcher | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def load(self) -> Predictor:
        """Opens the checkpoint, which may be a link to another one by now, and lets go of the one before."""
        async with self._one_at_a_time:
            predictor = await asyncio.to_thread(self._open)
            before, self.batcher = self.batcher, self._batcher(predictor)
            self.metrics.predictor = predictor
            log.info("serving %s, step %d", predictor.path, predictor.step)
            if not joinable(predictor, self.settings.join):
                log.info("requests are answered one by one: %s", self._why_alone(predictor))
            if before is not None:
                task = asyncio.create_task(before.close())  # when it has answered what it was asked
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            return predictor

    async def close(self) -> None:
        """Answers what waits, and closes the predictor."""
        async with self._one_at_a_time:  # one that is being loaded has to be closed, too
            batcher, self.batcher = self.batcher, None
            self.metrics.predictor = None
            if batcher is not None:
                await batcher.close()
            await asyncio.gather(*self._ending)

    def _open(self) -> Predictor:
        settings = self.settings
        predictor = Predictor(
            settings.checkpoint.resolve(),
            memory_budget=settings.memory_budget,
            num_threads=settings.num_threads,
        )
        if settings.watch is not None:
            predictor.watch(settings.watch, settings.poll_seconds)
        return predictor

    def _why_alone(self, predictor: Predictor) -> str:
        if self.settings.join == "never":
            return "--join never"
        if self.settings.join == "auto" and not predictor.by_sample:
            found = (
                "the model compares samples" if predictor.by_sample is False else "its export has not tried the model"
            )
            return f"{found}; --join always has them answered together all the same"
        return "inputs or outputs are not by sample"

    def _batcher(self, predictor: Predictor) -> Batcher:
        settings = self.settings
        return Batcher(
            predictor,
            samples=settings.batch_samples,
            seconds=settings.batch_seconds,
            workers=settings.workers,
            waiting=settings.waiting_samples,
            join=settings.join,
            answered=self.metrics.batch_samples.observe,
        )


class Metrics(Collector):
    """What /metrics tells, besides what prometheus_client counts by itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.predictor: Predictor | None = None
        self.requests = Counter("serve_requests", "Requests by status", ["status"], registry=self.registry)
        self.connections_ended = Counter(
            "serve_connections_ended",
            "Connections that the server ended, by reason",
            ["reason"],
            registry=self.registry,
        )
        self.seconds = Histogram("serve_request_seconds", "Time to answer a request", registry=self.registry)
        self.batch_samples = Histogram(
            "serve_batch_samples",
            "Samples that were answered together",
            buckets=[2**power for power in range(13)],
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What the predictor tells, as Prometheus has it."""
        predictor = self.predictor
        if predictor is None:
            return
        try:
            stats = predictor.stats()
        except StoreClosedError:  # another one has just taken its place
            return
        for name, text, value in (
            ("step", "Training step of what is served", stats.step),
            ("newest_step", "Training step of the newest that is published", stats.following.newest_step),
            ("behind", "1 if the newest cannot be reached: /health says why", stats.following.reason is not None),
            ("age_seconds", "Time since what is served was exported or published", stats.age or 0),
            ("deltas_waiting", "Deltas that are newer than what is served", stats.following.waiting),
            ("deltas_refused", "Deltas that are damaged, do not fit or cannot be read", stats.following.refused),
            ("deltas_applied", "Deltas applied since the checkpoint was opened", stats.deltas_applied),
            ("last_delta_time", "When the last one was applied, in seconds since 1970", stats.last_delta_time or 0),
            ("passed_over", "Entries of watched directories that are refused, or no deltas", stats.passed_over),
            ("row_hits", "Rows that were in memory", stats.hits),
            ("row_misses", "Rows that were not", stats.misses),
            ("memory_bytes", "Memory that rows take", stats.memory_bytes),
            ("predict_p50_seconds", "Median time of lookup and model", stats.p50),
            ("predict_p99_seconds", "99th percentile of the time of lookup and model", stats.p99),
        ):
            yield GaugeMetricFamily(f"serve_{name}", text, value)
