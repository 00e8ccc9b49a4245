"""What ends each backward pass of several ranks: all of them update their rows, or none does."""

import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import distributed

from damo_torchrec import errors
from damo_torchrec.distributed.lost_ranks import others_are_there
from damo_torchrec.distributed.shared_lives import SharedLives
from damo_torchrec.errors import DamoError
from damo_torchrec.store.agreement import Update

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Vote:
    """What a rank says of the update that it is about to make; all of it int64.

    Args:
        failed: whether it cannot make it.
        skipped: whether it would skip it.
        digest: of the step.
        lives: of what decides how long rows live.
        clock: the bits of its time, a float64.
        census: of its rows, which those of all ranks are added up from.
    """

    failed: int
    skipped: int
    digest: int
    lives: int
    clock: int
    census: tuple[int, ...]

    def numbers(self) -> list[int]:
        return [self.failed, self.skipped, self.digest, self.lives, self.clock, *self.census]

    @staticmethod
    def of(numbers: list[int]) -> "_Vote":
        failed, skipped, digest, lives, clock, *census = numbers
        return _Vote(failed, skipped, digest, lives, clock, tuple(census))


class RanksAgreement:
    """The other ranks of a process group: `damo_torchrec.store.agreement.Agreement`.

    Args:
        group: of the ranks.
        device: where its collectives take tensors.
        lives: of this rank's rows.
    """

    def __init__(self, group: distributed.ProcessGroup, device: torch.device, lives: SharedLives) -> None:
        self.group = group
        self.lives = lives
        self._device = device
        self._all_know = False  # that the update goes no further: nobody waits for word of it

    def settle(self, prepare: Callable[[], Update]) -> Update:
        """As its protocol says. One all-gather of 40 bytes, and 24 more for each table, which waits for all ranks."""
        self._all_know = False
        update, votes = self._vote(prepare)
        if _differ(vote.digest for vote in votes):
            raise DamoError(
                "no rank has updated its rows: ranks differ in the step that they are at, in a learning rate, loss "
                "scale, number of lookups, or in how long rows live "
                f"(rank {self.group.rank()}: {update.digest:08x})"
            )
        if _differ(vote.lives for vote in votes):  # rows have just been given a life, or are of an earlier release
            update, votes = self._vote(self._aligned(update))
        return replace(
            update,
            finite=not any(vote.skipped for vote in votes),
            clock=_from_bits(votes[0].clock),
            shared=self.lives.of_all([sum(numbers) for numbers in zip(*(vote.census for vote in votes), strict=True)]),
        )

    def _aligned(self, update: Update) -> Callable[[], Update]:
        """Has the lives of all ranks be alike before the update."""
        of_ranks = self._tell(self.lives.own())

        def align() -> Update:
            self.lives.align(of_ranks)
            return update

        return align

    def exchange(self, life: bytes) -> list[bytes]:
        """As its protocol says."""
        return self._share(life, None)

    def conclude(self, error: BaseException | None) -> None:
        """As its protocol says."""
        if error is None:
            self._share(b"", None)
        elif not self._all_know:
            with suppress(DamoError):  # there is one error to tell of already
                self._share(b"", f"{type(error).__name__}: {error}".rstrip(": "))

    def _share(self, life: bytes, failure: str | None) -> list[bytes]:
        """The lives that all ranks have told. Raises if one has told of a failure instead."""
        self._all_know = True
        told = self._tell((life, failure))
        for rank, (_, message) in enumerate(told):
            if message is not None:
                raise DamoError(f"rank {rank} could not make its part of it: {message}")
        self._all_know = False
        return [one for one, _ in told]

    def _tell(self, value: _T) -> list[_T]:
        told: list[Any] = [None] * self.group.size()
        with others_are_there("in the middle of an update"):
            distributed.all_gather_object(told, value, group=self.group)
        return told

    def total(self, value: int) -> int:
        """As its protocol says."""
        return sum(numbers[0] for numbers in self._gather([value]))

    def _vote(self, prepare: Callable[[], Update]) -> tuple[Update, list[_Vote]]:
        """What `prepare` returns, and what all ranks say of theirs, by rank. Raises on all if it fails on one."""
        update, error = None, None
        own = _Vote(1, 0, 0, 0, 0, (0,) * (3 * len(self.lives)))
        try:
            update = prepare()
            census, clock = self.lives.census(update.parts), _to_bits(update.clock)
            own = _Vote(0, int(not update.finite), update.digest, self.lives.digest(), clock, tuple(census))
        except BaseException as raised:  # the others wait
            error = raised
        votes = [_Vote.of(numbers) for numbers in self._gather(own.numbers())]
        if any(vote.failed for vote in votes):
            self._raise(error)
        assert update is not None
        return update, votes

    def _gather(self, numbers: list[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        told = own.new_empty(self.group.size() * len(numbers))
        with others_are_there("as ranks agree, before any row has changed"):
            distributed.all_gather_into_tensor(told, own, group=self.group)
        of_ranks: list[list[int]] = told.view(-1, len(numbers)).tolist()
        return of_ranks

    def _raise(self, error: BaseException | None) -> None:
        """Raises the error of this rank, or what the first of the others with one says."""
        told = self._tell((type(error).__name__, str(error)) if error is not None else None)
        if error is not None:
            raise error
        rank, (kind, message) = next((rank, said) for rank, said in enumerate(told) if said is not None)
        known = getattr(errors, kind, DamoError)
        raise known(f"no rank has updated its rows, as rank {rank} could not: {kind}: {message}")


def _differ(numbers: Iterable[int]) -> bool:
    return len(set(numbers)) > 1


def _to_bits(seconds: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", seconds))[0]
    return bits


def _from_bits(bits: int) -> float:
    seconds: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return seconds
