"""What ends each backward pass of several ranks: all of them update their rows, or none does."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import distributed

from damo_torchrec import errors
from damo_torchrec.distributed.shared_lives import SharedLives
from damo_torchrec.errors import DamoError
from damo_torchrec.store.agreement import Update


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

    def settle(self, prepare: Callable[[], Update]) -> Update:
        """As its protocol says. One all-gather of 40 bytes, and 24 more for each table, which waits for all ranks."""
        update, error = None, None
        try:
            update = prepare()
        except BaseException as raised:  # the others wait
            error = raised
        votes = self._votes(update)
        if any(vote.failed for vote in votes):
            self._raise(error)
        assert update is not None
        if len({vote.digest for vote in votes}) > 1:
            raise DamoError(
                "no rank has updated its rows: ranks differ in the step that they are at, in a learning rate, loss "
                "scale, number of lookups, or in how long rows live "
                f"(rank {self.group.rank()}: {update.digest:08x})"
            )
        if len({vote.lives for vote in votes}) > 1:  # rows have just been given a life, or are of an earlier release
            self.lives.align(self.exchange)
            votes = self._votes(update)
        return replace(
            update,
            finite=not any(vote.skipped for vote in votes),
            clock=_from_bits(votes[0].clock),
            shared=self.lives.of_all([sum(numbers) for numbers in zip(*(vote.census for vote in votes), strict=True)]),
        )

    def exchange(self, life: bytes) -> list[bytes]:
        """As its protocol says."""
        told: list[bytes] = [b""] * self.group.size()
        try:
            distributed.all_gather_object(told, life, group=self.group)
        except (RuntimeError, ValueError, EOFError) as error:  # torch has no one exception for a rank that is gone
            raise DamoError(f"a rank has ended, or does not answer, in the middle of an update: {error}") from error
        return told

    def total(self, value: int) -> int:
        """As its protocol says."""
        return sum(numbers[0] for numbers in self._gather([value]))

    def _votes(self, update: Update | None) -> list[_Vote]:
        """Those of all ranks, by rank, on this one's update, which is None if it has failed."""
        if update is None:
            own = _Vote(1, 0, 0, 0, 0, (0,) * (3 * len(self.lives)))
        else:
            census, clock = self.lives.census(update.parts), _to_bits(update.clock)
            own = _Vote(0, int(not update.finite), update.digest, self.lives.digest(), clock, tuple(census))
        return [_Vote.of(numbers) for numbers in self._gather(own.numbers())]

    def _gather(self, numbers: list[int]) -> list[list[int]]:
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        told = own.new_empty(self.group.size() * len(numbers))
        distributed.all_gather_into_tensor(told, own, group=self.group)
        of_ranks: list[list[int]] = told.view(-1, len(numbers)).tolist()
        return of_ranks

    def _raise(self, error: BaseException | None) -> None:
        """Raises the error of this rank, or what the first of the others with one says."""
        told: list[tuple[str, str] | None] = [None] * self.group.size()
        own = (type(error).__name__, str(error)) if error is not None else None
        distributed.all_gather_object(told, own, group=self.group)
        if error is not None:
            raise error
        rank, (kind, message) = next((rank, said) for rank, said in enumerate(told) if said is not None)
        known = getattr(errors, kind, DamoError)
        raise known(f"no rank has updated its rows, as rank {rank} could not: {kind}: {message}")


def _to_bits(seconds: float) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", seconds))[0]
    return bits


def _from_bits(bits: int) -> float:
    seconds: float = struct.unpack("<d", struct.pack("<q", bits))[0]
    return seconds
