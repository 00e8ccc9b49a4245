"""`follow_grad_scaler`: rows skip the steps that a model's dense part skips, and the other way round."""

import math
from collections.abc import Iterable, Sequence

import torch

from damo_torchrec.store.embedding_store import EmbeddingStore


def follow_grad_scaler(
    store: EmbeddingStore,
    scaler: torch.amp.GradScaler | None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
) -> None:
    """Has a store take the scale of each backward pass from a `GradScaler`, and skip steps together with it.

    At the end of each pass the dense gradients are looked at. If one is not finite, so that ``scaler.step`` is about to
    skip the dense part's step, the rows' is skipped, too, whatever `StoreOptions.on_nonfinite` says. If a gradient of
    rows is not finite, all are skipped. In both cases one gradient of each optimizer is made infinite, which has the
    scaler skip its step, too, and lower its scale. ``stats().skipped_backwards`` counts them.
    `EmbeddingStore.apply_accumulated` belongs before ``scaler.step``, as ``backward()`` does. Have one store follow a
    scaler: of several, some may be updated before a gradient of another's rows turns out not to be finite.

    ::

        damo.follow_grad_scaler(store, scaler, optimizer)  # once
        ...
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    Args:
        store: of the rows.
        scaler: what losses are scaled with; one that is disabled has no effect. None: follow none any more.
        optimizer: of the dense part, or several. Their gradients must be set to zero, as always, before each step.

    Raises:
        TypeError: an argument is something else.
    """
    if scaler is None:
        store.session.dense_part = None
        return
    if not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(f"scaler must be a torch.amp.GradScaler or None, got {type(scaler).__name__}")
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    for other in optimizers:
        if not isinstance(other, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several, got {type(other).__name__}")
    store.session.dense_part = _Scaled(scaler, optimizers) if scaler.is_enabled() else None


class _Scaled:
    """Dense parameters, and the scaler of their gradients: a `DensePart`."""

    def __init__(self, scaler: torch.amp.GradScaler, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._scaler = scaler
        self._optimizers = optimizers

    def scale(self) -> float:
        return float(self._scaler.get_scale())

    def overflows(self) -> bool:
        return any(not torch.isfinite(values).all() for o in self._optimizers for values in _gradients(o))

    def skip(self) -> None:
        for optimizer in self._optimizers:  # the scaler looks at each by itself
            first = next(iter(_gradients(optimizer)), None)
            if first is not None:
                first.fill_(math.inf)


def _gradients(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    """The values of each gradient of dense parameters."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.numel() > 0:
                yield parameter.grad._values() if parameter.grad.is_sparse else parameter.grad
