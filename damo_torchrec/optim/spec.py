"""An update rule with its hyperparameters, as the engine takes it."""

import math
from dataclasses import dataclass, fields, replace

from damo_torchrec import _core


@dataclass(frozen=True)
class OptimizerSpec:
    """An update rule with its hyperparameters, under torch.optim's names; a rule ignores those it has no use for.

    csrc/optimizers has the rules, one file each.
    """

    kind: str
    lr: float
    lr_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_mode: str = "l2"
    initial_accumulator_value: float = 0.0
    eta: float = 0.001
    beta: float = 1.0
    lambda1: float = 0.0
    lambda2: float = 0.0
    maximize: bool = False
    uncorrected_eps: bool = False
    rowwise_bias_correction: bool = False
    clip_value: float = math.inf
    clip_norm: float = math.inf

    def __post_init__(self) -> None:
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        if not math.isfinite(self.dampening):
            raise ValueError(f"dampening must be finite, got {self.dampening}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("clip_value", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.kind == "FTRL" and self.lr == 0:
            raise ValueError("FTRL divides by lr: it must be positive, got 0")

    def with_lr(self, lr: float) -> "OptimizerSpec":
        """The same rule with another learning rate."""
        return self if lr == self.lr else replace(self, lr=lr)

    def to_core(self) -> _core.OptimizerConfig:
        """The engine's form of it."""
        config = _core.OptimizerConfig()
        for field in fields(self):
            setattr(config, field.name, _to_core(field.name, getattr(self, field.name)))
        return config

    def schema(self) -> dict[str, float | str]:
        """What of it shapes the stored rows: the rule, and the value its state begins with."""
        return {"name": self.kind, "initial_accumulator_value": self.initial_accumulator_value}


_NOT_NEGATIVE = (
    *("lr", "lr_decay", "momentum", "eps", "weight_decay", "initial_accumulator_value"),
    *("eta", "beta", "lambda1", "lambda2"),
)


def _to_core(name: str, value: float | str) -> object:
    if name == "kind":
        return _core.OptimizerKind[str(value)]
    if name == "weight_decay_mode":
        return _core.WeightDecayMode[str(value).upper()]
    return value
