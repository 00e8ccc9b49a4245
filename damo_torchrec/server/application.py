"""A FastAPI application around a predictor that can be replaced."""

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from damo_torchrec.errors import DamoError
from damo_torchrec.server.batching import Batcher, OverloadedError
from damo_torchrec.server.bodies import SMALL_BODY, Bodies
from damo_torchrec.server.gate import Gate, Guarded
from damo_torchrec.server.json_bodies import Limits, TooLargeError, parse, to_json, to_request
from damo_torchrec.server.served_model import Metrics, Model, Settings
from damo_torchrec.serving import Predictor
from damo_torchrec.serving import Request as Question

log = logging.getLogger(__name__)

LONGEST_MESSAGE = 500


def make_app(settings: Settings, metrics: Metrics) -> FastAPI:
    """The application: its routes, behind the gate."""
    model = Model(settings, metrics)
    gate = Gate(settings.access)
    answers = Answers(model, metrics, gate)
    # Without openapi_url there are no pages about it either.
    app = FastAPI(openapi_url=None, lifespan=lambda _: serve(model))
    app.add_middleware(Guarded, gate=gate, refuse=answers.refuse)
    app.add_exception_handler(StarletteHTTPException, answers.refuse)  # type: ignore[arg-type]  # those of no route, too
    app.add_exception_handler(Exception, answers.fail)
    app.add_api_route("/predict", answers.predict, methods=["POST"], dependencies=[Depends(gate.check_body)])
    app.add_api_route("/reload", answers.reload, methods=["POST"], dependencies=[Depends(gate.check_token)])
    app.add_api_route("/health", answers.health, methods=["GET"])
    app.add_api_route("/metrics", answers.show_metrics, methods=["GET"])
    if settings.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


@contextlib.asynccontextmanager
async def serve(model: Model) -> AsyncIterator[None]:
    """What happens before the first request and after the last one."""
    await model.load()
    if threading.current_thread() is threading.main_thread():
        reload_on_hangup(model)
    yield
    await model.close()


def reload_on_hangup(model: Model) -> None:
    """Opens what is served again at each SIGHUP; where that fails, it serves on as before."""
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await model.load()
        except (DamoError, OSError, ValueError) as error:
            log.error("serving on as before: %s", error)

    def on_hangup() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


class Answers:
    """A method for each route."""

    def __init__(self, model: Model, metrics: Metrics, gate: Gate) -> None:
        self._model = model
        self._metrics = metrics
        self._gate = gate
        self._limits = model.settings.limits
        self._bodies = Bodies(self._limits.body_bytes, self._limits.bytes_together)
        self._one_large_body = asyncio.Semaphore()

    async def refuse(self, _: Request, error: StarletteHTTPException) -> JSONResponse:
        """Answers what may not be asked, with the reason."""
        self._metrics.requests.labels(error.status_code).inc()
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def fail(self, _: Request, error: Exception) -> JSONResponse:
        """What went wrong is in the log, and nobody else's business."""
        self._metrics.requests.labels(500).inc()
        return JSONResponse({"error": "the server has failed to answer"}, 500)

    async def predict(self, http: Request) -> JSONResponse:
        """Answers POST /predict: 200, 400, 413 or 422 with the reason, 503 where too many wait."""
        with self._metrics.seconds.time():
            batcher, request = await self._read(http)
            try:
                answer = await batcher.predict(request)
            except (ValueError, TypeError) as error:
                raise HTTPException(422, brief(error)) from error
            except OverloadedError as error:
                raise HTTPException(503, "too many requests wait", {"Retry-After": "1"}) from error
            except DamoError as error:
                log.exception("could not answer a request")
                raise HTTPException(500, "rows cannot be read") from error
            response = JSONResponse(to_json(answer))
        self._metrics.requests.labels(200).inc()
        return response

    async def reload(self) -> JSONResponse:
        """Answers POST /reload: 409 if what is there cannot be served."""
        try:
            predictor = await self._model.load()
        except (DamoError, OSError, ValueError) as error:
            raise HTTPException(409, f"serving on as before: {error}") from error
        return JSONResponse({"checkpoint": str(predictor.path), "step": predictor.step})

    async def health(self, http: Request) -> JSONResponse:
        """Answers GET /health."""
        if self._model.batcher is None:
            raise HTTPException(503, "the server is going down")
        predictor = self._model.batcher.predictor
        following = predictor.following
        health = {
            "status": "ok" if following.reason is None else "behind",
            "reason": following.reason,
            "step": predictor.step,
            "newest_step": following.newest_step,
            "age_seconds": predictor.age,
            "deltas": len(predictor.history) - 1,
            "deltas_waiting": following.waiting,
            "deltas_refused": following.refused,
            "passed_over": predictor.passed_over,
            "features": predictor.features,
        }
        if self._gate.has_token(http):
            health["checkpoint"] = str(predictor.path)
        return JSONResponse(health)

    def show_metrics(self) -> Response:
        """Answers GET /metrics."""
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _read(self, http: Request) -> tuple[Batcher, Question]:
        """What the body asks, and who is to answer it."""
        with self._bodies.reading() as body:
            content = await body.read(http)
            if len(content) <= SMALL_BODY:
                return await self._understand(content, in_thread=False)
            async with self._one_large_body:  # Python's objects take many times its bytes
                return await self._understand(content, in_thread=True)

    async def _understand(self, body: bytearray, in_thread: bool) -> tuple[Batcher, Question]:
        while (batcher := self._model.batcher) is not None:
            try:
                if in_thread:  # so that others are answered meanwhile
                    request = await asyncio.to_thread(read_request, batcher.predictor, body, self._limits)
                else:
                    request = read_request(batcher.predictor, body, self._limits)
            except TooLargeError as error:
                raise HTTPException(413, brief(error)) from error
            if batcher is self._model.batcher:  # else another model has taken its place meanwhile
                return batcher, request
        raise HTTPException(503, "the server is going down")


def read_request(predictor: Predictor, body: bytearray, limits: Limits) -> Question:
    """What a body asks the predictor. Raises TooLargeError, or HTTPException with the reason."""
    try:
        content = parse(body, limits)
    except TooLargeError:
        raise
    except ValueError as error:
        raise HTTPException(400, brief(error)) from error
    try:
        return to_request(predictor, content, limits)
    except TooLargeError:
        raise
    except (ValueError, TypeError) as error:
        raise HTTPException(422, brief(error)) from error


def brief(error: Exception) -> str:
    """Its message, of which a part may be as long as the request that it quotes."""
    message = str(error)
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
