"""What an optimizer class stands for, and an update rule with its hyperparameters, as the engine takes it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from damo_torchrec import _core


@dataclass(frozen=True)
class Rule:
    """What an optimizer class stands for.

    Args:
        kind: the update rule, one of `_core.UPDATE_RULES`.
        keywords: the class's keywords that have an effect here.
        weight_decay: how it is meant, ``"l2"`` or ``"decoupled"``; None where the rule has its own way.
        modes: whether FBGEMM's ``weight_decay_mode`` may say otherwise.
        variants: by keyword, the update rule where that is given and not zero.
        uncorrected_eps: whether eps is added before the bias correction.
        divides_by_lr: whether a learning rate of zero is refused.
    """

    kind: str
    keywords: frozenset[str]
    weight_decay: str | None = "l2"
    modes: bool = False
    variants: Mapping[str, str] = field(default_factory=dict)
    uncorrected_eps: bool = False
    divides_by_lr: bool = False

    def kind_for(self, values: Mapping[str, Any]) -> str:
        """The update rule with these values of the keywords."""
        return next((kind for keyword, kind in self.variants.items() if values.get(keyword)), self.kind)


@dataclass(frozen=True)
class _Range:
    """Which values a hyperparameter may have."""

    holds: Callable[[float], bool]
    words: str


def _in_range(holds: Callable[[float], bool], words: str) -> dict[str, _Range]:
    return {"range": _Range(holds, words)}


_NOT_NEGATIVE = _in_range(lambda x: math.isfinite(x) and x >= 0, "finite and not negative")
_FINITE = _in_range(math.isfinite, "finite")
_BELOW_ONE = _in_range(lambda x: 0 <= x < 1, "in [0, 1)")
_POSITIVE = _in_range(lambda x: x > 0, "positive")


@dataclass(frozen=True)
class OptimizerSpec:
    """An update rule with its hyperparameters, under torch.optim's names; a rule ignores those it has no use for.

    csrc/kernels/optimizers has the rules, one file each.
    """

    kind: str
    lr: float = field(metadata=_NOT_NEGATIVE)
    lr_decay: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    momentum: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    dampening: float = field(default=0.0, metadata=_FINITE)
    nesterov: bool = False
    beta1: float = field(default=0.9, metadata=_BELOW_ONE)
    beta2: float = field(default=0.999, metadata=_BELOW_ONE)
    eps: float = field(default=1e-8, metadata=_NOT_NEGATIVE)
    weight_decay: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    weight_decay_mode: str = "l2"
    initial_accumulator_value: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    eta: float = field(default=0.001, metadata=_NOT_NEGATIVE)
    beta: float = field(default=1.0, metadata=_NOT_NEGATIVE)
    lambda1: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    lambda2: float = field(default=0.0, metadata=_NOT_NEGATIVE)
    maximize: bool = False
    uncorrected_eps: bool = False
    rowwise_bias_correction: bool = False
    corrected_max: bool = False
    clip_value: float = field(default=math.inf, metadata=_POSITIVE)
    clip_norm: float = field(default=math.inf, metadata=_POSITIVE)
    divides_by_lr: bool = False

    def __post_init__(self) -> None:
        for known in fields(self):
            allowed = known.metadata.get("range")
            value = getattr(self, known.name)
            if allowed is not None and not allowed.holds(value):
                raise ValueError(f"{known.name} must be {allowed.words}, got {value}")
        if self.divides_by_lr and self.lr == 0:
            raise ValueError(f"{self.kind} divides by lr: it must be positive, got 0")
        if self.corrected_max and self.kind != "AMSGRAD":
            raise ValueError(f"corrected_max is an option of AMSGrad, got it with {self.kind}: give amsgrad=True")

    def with_lr(self, lr: float) -> "OptimizerSpec":
        """The same rule with another learning rate."""
        return self if lr == self.lr else replace(self, lr=lr)

    def difference(self, other: "OptimizerSpec") -> str:
        """Which of its numbers another has otherwise, in words."""
        ours, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{name} is {ours[name]} in one and {theirs[name]} in the other"
            for name in ours
            if ours[name] != theirs[name]
        )

    def to_core(self) -> _core.OptimizerConfig:
        """The engine's form of it."""
        values = {name: float(getattr(self, name)) for name in HYPERPARAMETERS}
        return _core.OptimizerConfig(self.kind, self.weight_decay_mode, values)

    def initial_state(self) -> float:
        """What every number of a new row's state is."""
        return _core.initial_state(self.to_core())

    def schema(self) -> dict[str, float | str]:
        """What of it shapes the stored rows: the rule, the value its state begins with, and what the state means."""
        schema: dict[str, float | str] = {
            "name": self.kind,
            "initial_accumulator_value": self.initial_accumulator_value,
        }
        return {**schema, "corrected_max": 1.0} if self.corrected_max else schema

    @staticmethod
    def of_schema(schema: Mapping[str, float | str]) -> "OptimizerSpec":
        """A rule whose `schema` is this. Hyperparameters, which it does not keep, are none that updates could use."""
        return OptimizerSpec(
            str(schema["name"]),
            lr=1.0,
            initial_accumulator_value=float(schema["initial_accumulator_value"]),
            corrected_max=bool(schema.get("corrected_max", False)),
        )


# The engine's hyperparameters, and whether they are float or bool.
HYPERPARAMETERS: Mapping[str, type] = {
    known.name: bool if isinstance(known.default, bool) else float
    for known in fields(OptimizerSpec)
    if known.name not in ("kind", "weight_decay_mode", "divides_by_lr")
}
