"""The optimizer that a collection shows: its updates happen in backward, its learning rates are set here."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torchrec.optim.fused import FusedOptimizer

from damo_torchrec.optim.spec import OptimizerSpec

# Rules whose state is what FBGEMM keeps under that name.
_HAVE_MOMENTUM_1 = ("ADAGRAD", "ROWWISE_ADAGRAD")

# What optimizers of torch have in their groups, and these take from the collection's optimizer_kwargs alone.
_FIXED = frozenset(
    ("momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "lr_decay", "alpha", "amsgrad", "maximize")
)


def _moments(state_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """TorchRec's ``momentum_1`` by table: those of ``{"T.weight": {"T.weight.momentum_1": ...}}``."""
    moments = {}
    for key, state in state_dict.get("state", {}).items():
        for name, value in state.items():
            if name.endswith(".momentum_1"):
                moments[key.removesuffix(".weight").rpartition(".")[2]] = value
    return moments


def _key(prefix: str, table: str) -> str:
    return f"{prefix}.{table}.weight"


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
        set_state: called with a table's name and the state of its rows 0 to n − 1.
    """

    def __init__(
        self, specs: dict[str, OptimizerSpec], prefix: str, set_state: Callable[[str, torch.Tensor], None]
    ) -> None:
        # Stand-ins without elements: rows are not parameters, but an optimizer is keyed by some.
        params = {_key(prefix, table): torch.nn.Parameter(torch.empty(0, device="cpu")) for table in specs}
        groups: list[dict[str, Any]] = [
            {"params": [param], "lr": spec.lr} for param, spec in zip(params.values(), specs.values(), strict=True)
        ]
        state = {g["params"][0]: {"lr": _LearningRate(g)} for g in groups}
        super().__init__(params, state, groups)
        self._prefix = prefix
        self._specs = specs
        self._groups = groups
        self._set_state = set_state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes learning rates from a state dict of ours, or rows' state from one of TorchRec's fused collections.

        TorchRec's has no learning rates. What it calls ``momentum_1`` becomes the state of the rows 0 to n − 1.

        Raises:
            ValueError: the state is none that the table's rule has.
            KeyError: a table is missing, or is one too many.
        """
        moments = _moments(state_dict)
        if not moments:
            super().load_state_dict(state_dict)
            return
        if moments.keys() != self._specs.keys():
            raise KeyError(f"the state dict has state of tables {sorted(moments)}, needed is {sorted(self._specs)}")
        for table in moments:
            if self._specs[table].kind not in _HAVE_MOMENTUM_1:
                raise ValueError(f"table {table!r}: {self._specs[table].kind} has no state of TorchRec's momentum_1")
        for table, state in moments.items():
            self._set_state(table, state)

    def __call__(self) -> "FusedTableOptimizer":
        """Itself: TorchRec's fused modules have ``fused_optimizer()`` where its sharded ones have a property."""
        return self

    def specs(self) -> dict[str, OptimizerSpec]:
        """The update rules with the learning rates of now, by table.

        Raises:
            ValueError: a parameter group has another hyperparameter, which has no effect there.
        """
        for group in self.param_groups:
            if odd := _FIXED.intersection(group):
                raise ValueError(
                    f"param_groups of rows have a learning rate, lr, and no {', '.join(sorted(odd))}: give it in "
                    "optimizer_kwargs when the collection is made"
                )
        return {
            table: spec.with_lr(float(group["lr"]))
            for (table, spec), group in zip(self._specs.items(), self.param_groups, strict=True)
        }

    def rename_table(self, before: str, after: str) -> None:
        """Gives a table another name, under which its group goes on."""
        self._specs = {after if table == before else table: spec for table, spec in self._specs.items()}
        params = self.params.values()
        self.params = {_key(self._prefix, table): param for table, param in zip(self._specs, params, strict=True)}

    def set_learning_rates(self, by_table: Mapping[str, float]) -> None:
        """Sets those of some tables."""
        for table, group in zip(self._specs, self._groups, strict=True):
            group["lr"] = by_table.get(table, group["lr"])

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # as TorchRec's
        """Nothing: rows were updated in backward."""

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Nothing: rows have no gradients."""
