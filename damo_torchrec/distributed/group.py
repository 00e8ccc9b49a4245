"""The ranks that act together: each says how its part went before any goes on, and one's error is an error of all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from damo_torchrec.errors import DamoError
from damo_torchrec.files import os_errors
from damo_torchrec.store.background import Job, Written

_T = TypeVar("_T")

_TORCHS_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class _Failure:
    """An error, to be raised by every rank."""

    kind: type[Exception]
    message: str

    @staticmethod
    def of(error: BaseException) -> _Failure:
        # Others may lack the class of a user's own, and some classes take more than a message.
        known = isinstance(error, DamoError | ValueError | TypeError) and type(error).__module__.startswith(
            ("damo_torchrec", "builtins")
        )
        if not known:
            return _Failure(DamoError, f"{type(error).__name__}: {error}")
        plain = ValueError if isinstance(error, UnicodeError) else type(error)
        assert issubclass(plain, Exception)
        return _Failure(plain, str(error))


class Ranks:
    """This rank among those of torch's default process group, or alone where there is none.

    They exchange small objects by a gloo group of their own, which nothing else uses: a thread may do so while training
    goes on. Calls come in the same order on all ranks.

    Args:
        group: of torch, or None for a rank that is alone.

        timeout: after which a rank that does not answer counts as gone.

    Attributes:
        rank: this one's.
        world_size: how many there are.
    """

    def __init__(self, group: dist.ProcessGroup | None, timeout: timedelta = _TORCHS_TIMEOUT) -> None:
        self.group = group
        self._says_so_after = timeout.total_seconds() / 4
        self.rank = 0 if group is None else dist.get_rank(group)
        self.world_size = 1 if group is None else dist.get_world_size(group)
        self._under_way: Written | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is rank 0."""
        return self.rank == 0

    def exchange(self, value: _T, what: str) -> list[_T]:
        """The values of all ranks, by rank.

        Raises:
            DamoError: another rank has ended, or does not answer within the process group's time-out.
        """
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except (RuntimeError, ValueError, EOFError) as error:  # torch has no one exception for a rank that is gone
            raise DamoError(
                f"rank {self.rank} of {self.world_size} could not {what}, as another rank has ended or does not "
                f"answer: {error}"
            ) from error
        return values

    def together(self, what: str, call: Callable[[], _T]) -> list[_T]:
        """What `call` returns on all ranks, by rank. All of them call this.

        Raises:
            Exception: one that names the ranks on which it failed, and how: the same on all ranks.
        """
        own: BaseException | None = None
        outcome: Any
        try:
            with os_errors(f"cannot {what}"):
                outcome = call()
        except BaseException as error:
            outcome, own = _Failure.of(error), error
        outcomes = self.exchange(outcome, what)
        failures = {rank: found for rank, found in enumerate(outcomes) if isinstance(found, _Failure)}
        if own is not None and not isinstance(own, Exception):
            raise own  # an interrupt; the others were told
        if not failures:
            return outcomes
        if self.world_size == 1 and own is not None:
            raise own
        kind = next(iter(failures.values())).kind
        told = "; ".join(f"rank {rank}: {failure.message}" for rank, failure in failures.items())
        raise kind(f"cannot {what}, on any of {self.world_size} ranks: {told}") from own

    def each(self, what: str, call: Callable[[], _T]) -> _T:
        """What `call` returns on this rank, which does not go to the others; raises as `together`."""
        own: list[_T] = []
        self.together(what, lambda: own.append(call()))
        return own[0]

    def work(self, what: str, call: Callable[[], _T]) -> _T:
        """As `each`, for what may take longer than a rank waits for another: meanwhile each says that it is at work.

        `call` is made by a thread of its own, and says nothing to the others.
        """
        if self.group is None:
            return self.each(what, call)
        done: Future[_T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except BaseException as error:  # for who waits
                done.set_exception(error)

        job = Job()
        job.start(run)
        try:
            while not all(self.exchange(_is_done(done, self._says_so_after), what)):
                pass
        finally:
            job.wait()
        return self.each(what, done.result)

    def of_first(self, what: str, call: Callable[[], _T]) -> _T:
        """What `call` returns on rank 0, which alone calls it; raises as `together`."""
        values = self.together(what, lambda: call() if self.is_first else None)
        found: Any = values[0]
        return found  # type: ignore[no-any-return]  # _T, by the line before

    def begin(self, under_way: Written) -> None:
        """Says that a thread goes on to talk to the other ranks until `under_way` is done."""
        self._under_way = under_way

    def settle(self) -> None:
        """Waits until no thread talks to the other ranks. Whether it failed is for those who asked for it."""
        if self._under_way is not None:
            self._under_way.wait()
            self._under_way = None


def _is_done(future: Future[Any], within: float) -> bool:
    """Whether it is, or will be in so many seconds."""
    return bool(wait([future], within).done)


_ranks: list[tuple[Any, Ranks]] = []  # of the default process group that there was last


def ranks_of_default_group() -> Ranks:
    """Those of torch's default process group. All ranks call it where it is called first."""
    world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if _ranks and _ranks[0][0] is world:
        return _ranks[0][1]
    alone = world is None or dist.get_world_size() == 1
    timeout = _timeout_of(world) if world is not None else _TORCHS_TIMEOUT
    ranks = Ranks(None if alone else dist.new_group(backend="gloo", timeout=timeout), timeout)
    _ranks[:] = [(world, ranks)]
    return ranks


def _timeout_of(world: Any) -> timedelta:
    """How long a rank of the group waits for another; torch's own default if it does not say."""
    for device in ("cpu", "cuda"):
        try:
            timeout = world._get_backend(torch.device(device)).options._timeout
        except (RuntimeError, AttributeError):
            continue
        if isinstance(timeout, timedelta):
            return timeout
    return _TORCHS_TIMEOUT
