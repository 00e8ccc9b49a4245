"""From an optimizer's class and keywords, as TorchRec's fused modules take them, to the engine's update rules."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torchrec

from damo_torchrec import _core


@dataclass(frozen=True)
class OptimizerSpec:
    """An update rule with its hyperparameters, under torch.optim's names; a rule ignores those it has no use for."""

    kind: str
    lr: float
    lr_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    weight_decay_mode: str = "l2"
    initial_accumulator_value: float = 0.0
    uncorrected_eps: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def with_lr(self, lr: float) -> "OptimizerSpec":
        """The same rule with another learning rate."""
        return self if lr == self.lr else replace(self, lr=lr)

    def to_core(self) -> _core.OptimizerConfig:
        """The engine's form of it."""
        config = _core.OptimizerConfig()
        config.kind = _core.OptimizerKind[self.kind]
        config.uncorrected_eps = self.uncorrected_eps
        config.weight_decay_mode = _core.WeightDecayMode[self.weight_decay_mode.upper()]
        for name in _NUMBERS:
            setattr(config, name, getattr(self, name))
        return config

    def schema(self) -> dict[str, float | str]:
        """What of it shapes the stored rows: the rule, and the value its state begins with."""
        return {"name": self.kind, "initial_accumulator_value": self.initial_accumulator_value}


_NUMBERS = (
    "lr",
    "lr_decay",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "initial_accumulator_value",
)

# FBGEMM's defaults, which torchrec.optim's classes get in TorchRec's fused modules.
_FBGEMM_DEFAULTS: dict[str, Any] = {
    "lr": 0.01,
    "eps": 1e-8,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
}
_COMMON = frozenset({"lr", "weight_decay"})
_ADAGRAD = _COMMON | {"lr_decay", "initial_accumulator_value", "eps"}
_ADAM = _COMMON | {"betas", "eps"}

# class: (rule, keywords that are supported, how weight decay is meant)
_RULES: dict[type, tuple[str, frozenset[str], str]] = {
    torch.optim.SGD: ("SGD", _COMMON, "l2"),
    torch.optim.Adagrad: ("ADAGRAD", _ADAGRAD, "l2"),
    torch.optim.Adam: ("ADAM", _ADAM | {"decoupled_weight_decay"}, "l2"),
    torch.optim.AdamW: ("ADAM", _ADAM, "decoupled"),
    torch.optim.SparseAdam: ("ADAM", _ADAM - {"weight_decay"}, "l2"),
    torchrec.optim.SGD: ("SGD", _COMMON, "l2"),
    torchrec.optim.Adagrad: ("ADAGRAD", _ADAGRAD, "l2"),
    torchrec.optim.RowWiseAdagrad: ("ROWWISE_ADAGRAD", _ADAGRAD, "l2"),
    torchrec.optim.Adam: ("ADAM", _ADAM, "decoupled"),
}
# How torch computes an update, not what: our own way of computing it stands in for all of them.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})


def optimizer_spec(optimizer_type: type, optimizer_kwargs: Mapping[str, Any] | None) -> OptimizerSpec:
    """Translates e.g. ``(torchrec.optim.RowWiseAdagrad, {"lr": 0.05})``.

    torch.optim's classes keep their own defaults; torchrec.optim's have those of FBGEMM, as in TorchRec's fused
    modules, and take its names ``learning_rate``, ``beta1``, ``beta2`` and ``weight_decay_mode`` (FBGEMM's enum, or
    ``"none"``, ``"l2"``, ``"decoupled"``) as well.

    Raises:
        ValueError: the class has no update rule here, or a keyword has no effect here or a value out of range; names
            it.
        TypeError: `optimizer_type` is not a class.
    """
    if not isinstance(optimizer_type, type):
        raise TypeError(f"optimizer_type must be an optimizer class, got {optimizer_type!r}")
    if optimizer_type not in _RULES:
        names = ", ".join(_name(known) for known in _RULES)
        raise ValueError(f"no update rule for {_name(optimizer_type)}: supported are {names}")
    kind, supported, mode = _RULES[optimizer_type]
    values = dict(optimizer_kwargs or {})
    if optimizer_type.__module__.startswith("torchrec."):
        values, mode = _from_fbgemm(values, mode)
    defaults = _defaults(optimizer_type)
    for name, value in values.items():
        if name in supported or name in _IMPLEMENTATION:
            continue
        if name in defaults and value == defaults[name]:
            continue
        raise ValueError(
            f"{_name(optimizer_type)}: {name}={value!r} is not supported here; "
            f"supported are {', '.join(sorted(supported))}"
        )
    values = {**{k: v for k, v in defaults.items() if k in supported}, **values}
    if values.get("decoupled_weight_decay"):
        mode = "decoupled"
    beta1, beta2 = _betas(values.get("betas", (0.9, 0.999)))
    numbers = {name: _number(name, values[name]) for name in _NUMBERS if name in values}
    return OptimizerSpec(
        kind=kind,
        weight_decay_mode=mode,
        uncorrected_eps=optimizer_type is torch.optim.SparseAdam,
        **{**numbers, "beta1": beta1, "beta2": beta2},
    )


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None


def _betas(value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"betas must be two numbers, got {value!r}")
    return _number("betas", value[0]), _number("betas", value[1])


def _from_fbgemm(values: dict[str, Any], mode: str) -> tuple[dict[str, Any], str]:
    """FBGEMM's names for hyperparameters in torch's."""
    if "learning_rate" in values:
        if "lr" in values:
            raise ValueError("give either lr or learning_rate, got both")
        values["lr"] = values.pop("learning_rate")
    if "beta1" in values or "beta2" in values:
        beta1, beta2 = values.get("betas", _FBGEMM_DEFAULTS["betas"])
        values["betas"] = (values.pop("beta1", beta1), values.pop("beta2", beta2))
    if "weight_decay_mode" in values:
        given = values.pop("weight_decay_mode")
        name = str(getattr(given, "name", given)).lower()
        modes = {"none": "none", "l2": "l2", "decouple": "decoupled", "decoupled": "decoupled"}
        if name not in modes:
            raise ValueError(f"weight_decay_mode must be none, l2 or decoupled, got {given!r}")
        if modes[name] == "none":
            values["weight_decay"] = 0.0
        else:
            mode = modes[name]
    return values, mode


def _defaults(optimizer_type: type) -> dict[str, Any]:
    if optimizer_type.__module__.startswith("torchrec."):
        return _FBGEMM_DEFAULTS
    parameters = inspect.signature(optimizer_type.__init__).parameters.values()  # type: ignore[misc]
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _name(optimizer_type: type) -> str:
    module = optimizer_type.__module__
    package = "torchrec.optim" if module.startswith("torchrec.") else module
    if module.startswith("torch.optim"):
        package = "torch.optim"
    return f"{package}.{optimizer_type.__qualname__}"
