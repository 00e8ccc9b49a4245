"""Answers requests that arrive at about the same time together: one lookup, one run of the model."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from damo_torchrec.serving import Predictor, Request

Outputs = dict[str, np.ndarray]
Join = Literal["auto", "always", "never"]


class OverloadedError(Exception):
    """More requests wait than there should be."""


@dataclass
class Waiting:
    """A request, and where its answer is put."""

    request: Request
    answer: "asyncio.Future[Outputs]"


class Batcher:
    """Lives in one event loop.

    A request that comes while others are being answered waits up to `seconds` for more to join it,
    up to `samples` in all. At most `workers` batches are on their way; meanwhile requests gather,
    up to `waiting` samples. `join` says which models are asked that way: "auto" those that answer each
    sample by itself, as far as their export could tell, "always" those of which answers can be told
    apart, "never" none.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        samples: int,
        seconds: float,
        workers: int,
        waiting: int,
        join: Join = "auto",
        answered: Callable[[int], None] = lambda samples: None,
    ) -> None:
        self.predictor = predictor
        self._samples_together = samples
        self._join = join
        self._seconds = seconds
        self._most_waiting = waiting
        self._answered = answered
        self._waiting: list[Waiting] = []
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._slots = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, "predict")
        self._batches: set[asyncio.Task[None]] = set()
        self._loop = asyncio.create_task(self._collect())

    async def predict(self, request: Request) -> Outputs:
        """The answer to a request. Raises OverloadedError, and what `Predictor.predict` raises."""
        if self._samples() + request.batch > max(self._most_waiting, request.batch):
            raise OverloadedError
        waiting = Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        if self._samples() >= self._most:
            self._full.set()
        return await waiting.answer

    async def close(self) -> None:
        """Answers what waits, and closes the predictor."""
        while self._waiting or self._batches:
            await asyncio.sleep(0.001)
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._threads.shutdown()
        self.predictor.close()

    @property
    def _most(self) -> int:
        """Samples in one run; a delta may bring another dense part."""
        return self._samples_together if joinable(self.predictor, self._join) else 1

    def _samples(self) -> int:
        return sum(waiting.request.batch for waiting in self._waiting)

    async def _collect(self) -> None:
        while True:
            await self._arrived.wait()
            if self._batches:  # else there is nobody to wait for
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._seconds)
            await self._slots.acquire()
            batch = [self._waiting.pop(0)]
            size = batch[0].request.batch
            while self._waiting and size + self._waiting[0].request.batch <= self._most:
                batch.append(self._waiting.pop(0))
                size += batch[-1].request.batch
            if not self._waiting:
                self._arrived.clear()
            if self._samples() < self._most:
                self._full.clear()
            task = asyncio.create_task(self._answer(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    async def _answer(self, batch: list[Waiting]) -> None:
        requests = [waiting.request for waiting in batch]
        answers: list[Outputs | Exception]
        try:
            loop = asyncio.get_running_loop()
            ask = predict_together if self._join == "auto" else functools.partial(predict_together, join=self._join)
            answers = [*await loop.run_in_executor(self._threads, ask, self.predictor, requests)]
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._slots.release()
        self._answered(sum(request.batch for request in requests))
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.cancelled():  # the client has gone
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)


def joinable(predictor: Predictor, join: Join = "auto") -> bool:
    """Whether requests may be put together: answers can be told apart, and are those that each would get alone."""
    if join == "never" or (join == "auto" and not predictor.by_sample):
        return False
    by_sample = all(shape[:1] == ("batch",) for shape in predictor.outputs.values())
    of_features = {f"{name}.{part}" for name in predictor.features for part in ("values", "lengths", "weights")}
    plain = [argument for name, argument in predictor.inputs.items() if name not in of_features]
    return by_sample and all(argument.shape is not None and argument.shape[:1] == ("batch",) for argument in plain)


def predict_together(predictor: Predictor, requests: Sequence[Request], join: Join = "auto") -> list[Outputs]:
    """The answers to requests, as if each was asked alone, unless the model compares samples and `join` is "always"."""
    if len(requests) == 1 or not joinable(predictor, join):
        return [predictor.predict(request.arrays) for request in requests]
    outputs = predictor.predict(joined(predictor, requests))
    ends = np.cumsum([request.batch for request in requests])[:-1]
    parts = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: arrays[i] for name, arrays in parts.items()} for i in range(len(requests))]


def joined(predictor: Predictor, requests: Sequence[Request]) -> Outputs:
    """One request of many. Values are by key, then sample, so those of a key come together."""
    arrays: Outputs = {}
    for name, keys in predictor.features.items():
        lengths = [request.arrays[f"{name}.lengths"] for request in requests]
        arrays[f"{name}.lengths"] = np.concatenate(lengths, axis=1)
        ends = [np.cumsum(each.sum(axis=1))[:-1] for each in lengths]
        for part in ("values", "weights"):
            if f"{name}.{part}" in predictor.inputs:
                split = [np.split(r.arrays[f"{name}.{part}"], e) for r, e in zip(requests, ends, strict=True)]
                arrays[f"{name}.{part}"] = np.concatenate([of[key] for key in range(len(keys)) for of in split])
    for name in predictor.inputs.keys() - arrays.keys():
        arrays[name] = np.concatenate([request.arrays[name] for request in requests])
    return arrays
