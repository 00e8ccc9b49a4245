"""What ends each backward pass of several ranks: all of them update their rows, or none does."""

from collections.abc import Callable

import torch
from torch import distributed

from damo_torchrec import errors
from damo_torchrec.errors import DamoError
from damo_torchrec.store.agreement import Update


class RanksAgreement:
    """The other ranks of a process group: `damo_torchrec.store.agreement.Agreement`.

    Args:
        group: of the ranks.
        device: where its collectives take tensors.
    """

    def __init__(self, group: distributed.ProcessGroup, device: torch.device) -> None:
        self.group = group
        self._device = device

    def settle(self, prepare: Callable[[], Update]) -> Update:
        """As its protocol says. One all-reduce of 32 bytes, which waits for all ranks."""
        update, error = None, None
        try:
            update = prepare()
        except BaseException as raised:  # the others wait
            error = raised
        failed, skipped, largest, smallest = self._worst(update)
        if failed:
            self._raise(error)
        assert update is not None
        if largest != smallest:
            raise DamoError(
                "no rank has updated its rows: ranks differ in the step that they are at, or in a learning rate, loss "
                f"scale or number of lookups (rank {self.group.rank()}: {update.digest:08x})"
            )
        return update if not skipped else Update(update.gradients, update.scale, finite=False, digest=update.digest)

    def _worst(self, update: Update | None) -> tuple[bool, bool, int, int]:
        """Over all ranks: whether one failed, whether one skips, and the largest and smallest digest."""
        own = [1, 0, 0, 0] if update is None else [0, int(not update.finite), update.digest, -update.digest]
        votes = torch.tensor(own, dtype=torch.int64, device=self._device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX, group=self.group)
        failed, skipped, largest, negated = votes.tolist()
        return bool(failed), bool(skipped), largest, -negated

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
