"""The HTTP side of serve.py: a FastAPI application around a predictor that can be replaced."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

import damo_torchrec as damo
from damo_torchrec.serving import Predictor
from serve_batching import Batcher, Outputs, OverloadedError
from serve_json import Limits, TooLargeError, parse, to_json, to_request

log = logging.getLogger("serve")

# Bodies from so many bytes on are read in a thread, so that others are answered meanwhile.
LARGE_BODY = 65_536


@dataclass(frozen=True)
class Settings:
    """What serve.py's command line says."""

    checkpoint: Path
    memory_budget: str = "1GiB"
    num_threads: int | None = None
    watch: Path | None = None
    poll_seconds: float = 1.0
    batch_samples: int = 256
    batch_seconds: float = 0.001
    workers: int = 2
    waiting_samples: int = 16_384
    limits: Limits = field(default_factory=Limits)


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
            if before is not None:
                task = asyncio.create_task(before.close())  # when it has answered what it was asked
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            return predictor

    async def close(self) -> None:
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

    def _batcher(self, predictor: Predictor) -> Batcher:
        settings = self.settings
        return Batcher(
            predictor,
            samples=settings.batch_samples,
            seconds=settings.batch_seconds,
            workers=settings.workers,
            waiting=settings.waiting_samples,
            answered=self.metrics.batch_samples.observe,
        )


class Metrics(Collector):
    """What /metrics tells, besides what prometheus_client counts by itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.predictor: Predictor | None = None
        self.requests = Counter("serve_requests", "Requests by status", ["status"], registry=self.registry)
        self.seconds = Histogram("serve_request_seconds", "Time to answer a request", registry=self.registry)
        self.batch_samples = Histogram(
            "serve_batch_samples",
            "Samples that were answered together",
            buckets=[2**power for power in range(13)],
            registry=self.registry,
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        predictor = self.predictor
        if predictor is None:
            return
        try:
            stats = predictor.stats()
        except damo.StoreClosedError:  # another one has just taken its place
            return
        for name, text, value in (
            ("step", "Training step of what is served", stats.step),
            ("deltas_applied", "Deltas applied since the checkpoint was opened", stats.deltas_applied),
            ("last_delta_time", "When the last one was applied, in seconds since 1970", stats.last_delta_time or 0),
            ("row_hits", "Rows that were in memory", stats.hits),
            ("row_misses", "Rows that were not", stats.misses),
            ("memory_bytes", "Memory that rows take", stats.memory_bytes),
            ("predict_p50_seconds", "Median time of lookup and model", stats.p50),
            ("predict_p99_seconds", "99th percentile of the time of lookup and model", stats.p99),
        ):
            yield GaugeMetricFamily(f"serve_{name}", text, value)


def make_app(settings: Settings) -> FastAPI:
    metrics = Metrics()
    model = Model(settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await model.load()
        if threading.current_thread() is threading.main_thread():
            reloads: set[asyncio.Task[None]] = set()

            async def reload() -> None:
                try:
                    await model.load()
                except (damo.DamoError, ValueError) as error:
                    log.error("serving on as before: %s", error)

            def on_hangup() -> None:
                task = asyncio.create_task(reload())
                reloads.add(task)
                task.add_done_callback(reloads.discard)

            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
        yield
        await model.close()

    app = FastAPI(title="damo_torchrec", lifespan=lifespan)

    @app.exception_handler(StarletteHTTPException)  # those of no route, too
    async def refuse(_: Request, error: StarletteHTTPException) -> JSONResponse:
        metrics.requests.labels(error.status_code).inc()
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def ask(content: dict[str, Any], in_thread: bool) -> Outputs:
        while (batcher := model.batcher) is not None:
            if in_thread:
                request = await asyncio.to_thread(to_request, batcher.predictor, content, settings.limits)
            else:
                request = to_request(batcher.predictor, content, settings.limits)
            if batcher is model.batcher:  # else another model has taken its place meanwhile
                return await batcher.predict(request)
        raise HTTPException(503, "the server is going down")

    @app.post("/predict")
    async def predict(http: Request) -> JSONResponse:
        with metrics.seconds.time():
            body = await read_body(http, settings.limits.body_bytes)
            in_thread = len(body) > LARGE_BODY
            try:
                content = await asyncio.to_thread(parse, body) if in_thread else parse(body)
            except ValueError as error:
                raise HTTPException(400, str(error)) from error
            try:
                answer = await ask(content, in_thread)
            except TooLargeError as error:
                raise HTTPException(413, str(error)) from error
            except (ValueError, TypeError) as error:
                raise HTTPException(422, str(error)) from error
            except OverloadedError as error:
                raise HTTPException(503, "too many requests wait", {"Retry-After": "1"}) from error
            except damo.DamoError as error:
                log.exception("could not answer a request")
                raise HTTPException(500, "rows cannot be read") from error
            response = JSONResponse(to_json(answer))
        metrics.requests.labels(200).inc()
        return response

    @app.post("/reload")
    async def reload() -> JSONResponse:
        try:
            predictor = await model.load()
        except (damo.DamoError, ValueError) as error:
            raise HTTPException(409, f"serving on as before: {error}") from error
        return JSONResponse({"checkpoint": str(predictor.path), "step": predictor.step})

    @app.get("/health")
    async def health() -> JSONResponse:
        if model.batcher is None:
            raise HTTPException(503, "the server is going down")
        predictor = model.batcher.predictor
        return JSONResponse(
            {
                "status": "ok",
                "checkpoint": str(predictor.path),
                "step": predictor.step,
                "deltas": len(predictor.history) - 1,
                "features": predictor.features,
            }
        )

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def read_body(http: Request, most: int) -> bytes:
    """The body, of which no more is read than the limit."""
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            parts.append(part)
    except ClientDisconnect as error:
        raise HTTPException(400, "the client has gone before the end of the body") from error
    return b"".join(parts)
