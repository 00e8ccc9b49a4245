"""The optimizer that a collection shows: its updates happen in backward, its learning rates are set here."""

from typing import Any

import torch
from torchrec.optim.fused import FusedOptimizer

from damo_torchrec.optim.spec import OptimizerSpec


class _LearningRate:
    """A group's learning rate as a part of the optimizer's state, which is what TorchRec's optimizers save."""

    def __init__(self, group: dict[str, Any]) -> None:
        self._group = group

    def state_dict(self) -> float:
        return float(self._group["lr"])

    def load_state_dict(self, lr: float) -> None:
        self._group["lr"] = lr


class FusedTableOptimizer(FusedOptimizer):
    """A TorchRec `KeyedOptimizer` with one parameter group per table.

    ``param_groups[i]["lr"]`` may be set at any time, by hand or by a scheduler; a change holds from the next backward.
    `step` and `zero_grad` do nothing. The state dict carries the learning rates.

    Args:
        specs: by table.
        prefix: what keys begin with, as in TorchRec: ``"embedding_bags"`` or ``"embeddings"``.
    """

    def __init__(self, specs: dict[str, OptimizerSpec], prefix: str) -> None:
        # Stand-ins without elements: rows are not parameters, but an optimizer is keyed by some.
        params = {f"{prefix}.{table}.weight": torch.nn.Parameter(torch.empty(0, device="cpu")) for table in specs}
        groups: list[dict[str, Any]] = [
            {"params": [param], "lr": spec.lr, "initial_lr": spec.lr}
            for param, spec in zip(params.values(), specs.values(), strict=True)
        ]
        state = {g["params"][0]: {"lr": _LearningRate(g)} for g in groups}
        super().__init__(params, state, groups)
        self._specs = specs

    def __call__(self) -> "FusedTableOptimizer":
        """Itself: TorchRec's fused modules have ``fused_optimizer()`` where its sharded ones have a property."""
        return self

    def specs(self) -> dict[str, OptimizerSpec]:
        """The update rules with the learning rates of now, by table."""
        return {
            table: spec.with_lr(float(group["lr"]))
            for (table, spec), group in zip(self._specs.items(), self.param_groups, strict=True)
        }

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as TorchRec's
        """Nothing: rows were updated in backward."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Nothing: rows have no gradients."""
