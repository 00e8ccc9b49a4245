"""From an optimizer's class and keywords, as TorchRec's fused modules take them, to the engine's update rules."""

import inspect
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
import torchrec

from damo_torchrec.optim.classes import RowOptimizer
from damo_torchrec.optim.spec import HYPERPARAMETERS, OptimizerSpec, Rule

_TORCH = frozenset({"lr", "weight_decay", "maximize"})
_FBGEMM = frozenset({"lr", "weight_decay", "gradient_clipping", "max_gradient"})
_SGD = frozenset({"momentum", "dampening", "nesterov"})
_ADAGRAD = frozenset({"lr_decay", "initial_accumulator_value", "eps"})
_ADAM = frozenset({"betas", "eps", "use_rowwise_bias_correction"})
_OF_AMSGRAD = frozenset({"amsgrad", "corrected_max"})
_AMSGRAD = {"amsgrad": "AMSGRAD"}

RULES: Mapping[type, Rule] = {
    torch.optim.SGD: Rule("SGD", _TORCH | _SGD, variants={"momentum": "MOMENTUM_SGD"}),
    torch.optim.Adagrad: Rule("ADAGRAD", _TORCH | _ADAGRAD),
    torch.optim.Adam: Rule("ADAM", _TORCH | _ADAM | _OF_AMSGRAD | {"decoupled_weight_decay"}, variants=_AMSGRAD),
    torch.optim.AdamW: Rule("ADAM", _TORCH | _ADAM | _OF_AMSGRAD, "decoupled", variants=_AMSGRAD),
    torch.optim.SparseAdam: Rule("ADAM", _ADAM | {"lr", "maximize"}, uncorrected_eps=True),
    torchrec.optim.SGD: Rule("SGD", _FBGEMM, modes=True),
    torchrec.optim.LarsSGD: Rule("LARS_SGD", _FBGEMM | {"momentum", "eta"}, None),
    torchrec.optim.Adagrad: Rule("ADAGRAD", _FBGEMM | _ADAGRAD, modes=True),
    torchrec.optim.RowWiseAdagrad: Rule("ROWWISE_ADAGRAD", _FBGEMM | _ADAGRAD, modes=True),
    torchrec.optim.Adam: Rule("ADAM", _FBGEMM | _ADAM, "decoupled", modes=True),
    torchrec.optim.PartialRowWiseAdam: Rule("PARTIAL_ROWWISE_ADAM", _FBGEMM | _ADAM, "decoupled", modes=True),
    torchrec.optim.LAMB: Rule("LAMB", _FBGEMM | _ADAM, None),
    torchrec.optim.PartialRowWiseLAMB: Rule("PARTIAL_ROWWISE_LAMB", _FBGEMM | _ADAM, None),
    **{own: own.rule for own in RowOptimizer.__subclasses__()},
}
# FBGEMM's defaults, which torchrec.optim's classes get in TorchRec's fused modules.
_FBGEMM_DEFAULTS: dict[str, Any] = {
    "lr": 0.01,
    "eps": 1e-8,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
    "momentum": 0.9,
    "eta": 0.001,
    "gradient_clipping": False,
    "max_gradient": 1.0,
}
# How torch computes an update, not what: our own way of computing it stands in for all of them.
_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})


def optimizer_spec(optimizer_type: type, optimizer_kwargs: Mapping[str, Any] | None) -> OptimizerSpec:
    """Translates e.g. ``(torchrec.optim.RowWiseAdagrad, {"lr": 0.05})``.

    torch.optim's classes keep their own defaults; torchrec.optim's have those of FBGEMM, as in TorchRec's fused
    modules, and take its names ``learning_rate``, ``beta1``, ``beta2``, ``gradient_clipping`` with ``max_gradient``,
    and ``weight_decay_mode`` (FBGEMM's enum, or ``"none"``, ``"l2"``, ``"decoupled"``) as well. Adam and its kin take
    FBGEMM's ``use_rowwise_bias_correction``. With ``amsgrad=True`` torch's take ``corrected_max=True``, for the maximum
    of second moments after their bias correction.

    Raises:
        ValueError: the class has no update rule here, or a keyword has no effect here or a value out of range; names
            it.
        TypeError: `optimizer_type` is not a class.
    """
    given: object = optimizer_type
    if isinstance(given, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer_type must be an optimizer class, got an instance of {_name(type(given))}: give its class, and "
            "what it was made with as optimizer_kwargs; rows are no parameters that it could hold"
        )
    if not isinstance(optimizer_type, type):
        raise TypeError(f"optimizer_type must be an optimizer class, got {optimizer_type!r}")
    if optimizer_type not in RULES:
        names = ", ".join(_name(known) for known in RULES)
        raise ValueError(f"no update rule for {_name(optimizer_type)}: supported are {names}")
    rule = RULES[optimizer_type]
    values = dict(optimizer_kwargs or {})
    mode = rule.weight_decay or "l2"
    if _is_fbgemms(optimizer_type):
        values = _from_fbgemm(values)
        if rule.modes:
            values, mode = _weight_decay_mode(values, mode)
    _check_keywords(optimizer_type, rule, values)
    defaults = _FBGEMM_DEFAULTS if _is_fbgemms(optimizer_type) else _signature_defaults(optimizer_type)
    values = {**{k: v for k, v in defaults.items() if k in rule.keywords}, **values}
    _check_nesterov(values)
    beta1, beta2 = _betas(values.get("betas", (0.9, 0.999)))
    same_names: dict[str, Any] = {
        name: bool(values[name]) if kind is bool else _number(name, values[name])
        for name, kind in HYPERPARAMETERS.items()
        if name in values
    }
    return OptimizerSpec(
        kind=rule.kind_for(values),
        weight_decay_mode="decoupled" if values.get("decoupled_weight_decay") else mode,
        beta1=beta1,
        beta2=beta2,
        uncorrected_eps=rule.uncorrected_eps,
        rowwise_bias_correction=bool(values.get("use_rowwise_bias_correction", False)),
        clip_value=_number("max_gradient", values["max_gradient"]) if values.get("gradient_clipping") else math.inf,
        divides_by_lr=rule.divides_by_lr,
        **same_names,
    )


def without_neutral(optimizer_type: type, values: Mapping[str, Any], keywords: AbstractSet[str]) -> dict[str, Any]:
    """Keywords of an optimizer, less those that are not in `keywords` and leave its updates as they are without them.

    These have the default of the class's own signature, or say how it computes an update, not what.
    """
    defaults = _signature_defaults(optimizer_type)
    return {
        name: value
        for name, value in values.items()
        if name in keywords or not (name in _IMPLEMENTATION or (name in defaults and value == defaults[name]))
    }


def _check_keywords(optimizer_type: type, rule: Rule, values: Mapping[str, Any]) -> None:
    for name, value in without_neutral(optimizer_type, values, rule.keywords).items():
        if name in rule.keywords:
            continue
        raise ValueError(
            f"{_name(optimizer_type)}: {name}={value!r} is not supported here; "
            f"supported are {', '.join(sorted(rule.keywords))}"
        )


def _check_nesterov(values: Mapping[str, Any]) -> None:
    if not values.get("nesterov"):
        return
    if not values.get("momentum"):
        raise ValueError("nesterov needs a momentum, got momentum=0")
    if values.get("dampening"):
        raise ValueError(f"nesterov needs dampening=0, got {values['dampening']}")


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None


def _betas(value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"betas must be two numbers, got {value!r}")
    return _number("betas", value[0]), _number("betas", value[1])


def _is_fbgemms(optimizer_type: type) -> bool:
    return optimizer_type.__module__.startswith("torchrec.")


def _from_fbgemm(values: dict[str, Any]) -> dict[str, Any]:
    """FBGEMM's names for hyperparameters in torch's."""
    values = dict(values)
    if "learning_rate" in values:
        if "lr" in values:
            raise ValueError("give either lr or learning_rate, got both")
        values["lr"] = values.pop("learning_rate")
    if "beta1" in values or "beta2" in values:
        beta1, beta2 = _betas(values.get("betas", _FBGEMM_DEFAULTS["betas"]))
        values["betas"] = (values.pop("beta1", beta1), values.pop("beta2", beta2))
    return values


def _weight_decay_mode(values: dict[str, Any], mode: str) -> tuple[dict[str, Any], str]:
    values = dict(values)
    given = values.pop("weight_decay_mode", mode)
    name = str(getattr(given, "name", given)).lower()
    modes = {"none": "none", "l2": "l2", "decouple": "decoupled", "decoupled": "decoupled"}
    if name not in modes:
        raise ValueError(f"weight_decay_mode must be none, l2 or decoupled, got {given!r}")
    if modes[name] == "none":
        return {**values, "weight_decay": 0.0}, mode
    return values, modes[name]


def _signature_defaults(optimizer_type: type) -> dict[str, Any]:
    parameters = inspect.signature(optimizer_type).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def _name(optimizer_type: type) -> str:
    module = optimizer_type.__module__
    package = "torchrec.optim" if module.startswith("torchrec.") else module
    if module.startswith("torch.optim"):
        package = "torch.optim"
    if module.startswith("damo_torchrec."):
        package = "damo.optim"
    return f"{package}.{optimizer_type.__qualname__}"
