"""The HTTP side of serve.py: a FastAPI application around a predictor that can be replaced."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

import damo_torchrec as damo
from serve_batching import Outputs, OverloadedError
from serve_json import TooLargeError, parse, to_json, to_request
from serve_model import Metrics, Model, Settings

log = logging.getLogger("serve")

# Bodies from so many bytes on are read in a thread, so that others are answered meanwhile.
LARGE_BODY = 65_536


def make_app(settings: Settings) -> FastAPI:
    metrics = Metrics()
    model = Model(settings, metrics)
    answers = Answers(model, metrics)
    app = FastAPI(title="damo_torchrec", lifespan=lambda _: serving(model))
    app.add_exception_handler(StarletteHTTPException, answers.refuse)  # those of no route, too
    app.add_api_route("/predict", answers.predict, methods=["POST"])
    app.add_api_route("/reload", answers.reload, methods=["POST"])
    app.add_api_route("/health", answers.health, methods=["GET"])
    app.add_api_route("/metrics", answers.show_metrics, methods=["GET"])
    return app


@contextlib.asynccontextmanager
async def serving(model: Model) -> AsyncIterator[None]:
    """What happens before the first request and after the last one."""
    await model.load()
    if threading.current_thread() is threading.main_thread():
        reload_on_hangup(model)
    yield
    await model.close()


def reload_on_hangup(model: Model) -> None:
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


class Answers:
    """A method for each route."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        self._model = model
        self._metrics = metrics
        self._limits = model.settings.limits

    async def refuse(self, _: Request, error: StarletteHTTPException) -> JSONResponse:
        self._metrics.requests.labels(error.status_code).inc()
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def predict(self, http: Request) -> JSONResponse:
        with self._metrics.seconds.time():
            body = await read_body(http, self._limits.body_bytes)
            in_thread = len(body) > LARGE_BODY
            try:
                content = await asyncio.to_thread(parse, body) if in_thread else parse(body)
            except ValueError as error:
                raise HTTPException(400, str(error)) from error
            try:
                answer = await self._ask(content, in_thread)
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
        self._metrics.requests.labels(200).inc()
        return response

    async def reload(self) -> JSONResponse:
        try:
            predictor = await self._model.load()
        except (damo.DamoError, ValueError) as error:
            raise HTTPException(409, f"serving on as before: {error}") from error
        return JSONResponse({"checkpoint": str(predictor.path), "step": predictor.step})

    async def health(self) -> JSONResponse:
        if self._model.batcher is None:
            raise HTTPException(503, "the server is going down")
        predictor = self._model.batcher.predictor
        return JSONResponse(
            {
                "status": "ok",
                "checkpoint": str(predictor.path),
                "step": predictor.step,
                "deltas": len(predictor.history) - 1,
                "passed_over": predictor.passed_over,
                "features": predictor.features,
            }
        )

    def show_metrics(self) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _ask(self, content: dict[str, Any], in_thread: bool) -> Outputs:
        while (batcher := self._model.batcher) is not None:
            if in_thread:
                request = await asyncio.to_thread(to_request, batcher.predictor, content, self._limits)
            else:
                request = to_request(batcher.predictor, content, self._limits)
            if batcher is self._model.batcher:  # else another model has taken its place meanwhile
                return await batcher.predict(request)
        raise HTTPException(503, "the server is going down")


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
