"""The weights of a model that are no rows."""

import logging

import torch
from torch import nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.tensor import DTensor

_log = logging.getLogger(__name__)
_NAMED = 5


def warn_of_nonfinite(model: nn.Module, what: str) -> None:
    """Logs a warning that names parameters and buffers of a model that are NaN or infinite, before `what` keeps them.

    Whoever has them has a model that gives NaN: an older checkpoint is what helps.
    """
    odd = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.device.type != "meta"
        and not all(torch.isfinite(part).all() for part in _here(value))
    ]
    if odd:
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        _log.warning(
            "%s: weights of the dense part are NaN or infinite: %s%s. Go back to an older checkpoint",
            what,
            ", ".join(odd[:_NAMED]),
            more,
        )


def _here(value: torch.Tensor) -> list[torch.Tensor]:
    """A tensor, or what this rank has of one that is sharded."""
    if isinstance(value, ShardedTensor):
        return [shard.tensor for shard in value.local_shards()]
    return [value.to_local() if isinstance(value, DTensor) else value]
