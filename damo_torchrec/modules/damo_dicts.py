"""Damo-Embedding's dicts that name an optimizer or an initializer, in this package's terms."""

import logging
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from damo_torchrec import init, optim
from damo_torchrec.life import Admit

_log = logging.getLogger(__name__)

# name: (class, keywords that are always given, {key of the dict: (keyword, default)})
_ADAM = {"gamma": ("lr", 1e-3), "beta1": ("beta1", 0.9), "beta2": ("beta2", 0.999), "epsilon": ("eps", 1e-8)}
_BY_COUNT = {"use_rowwise_bias_correction": True}
_OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any], dict[str, tuple[str, float]]]] = {
    "sgd": (torch.optim.SGD, {}, {"gamma": ("lr", 1e-3), "lambda": ("weight_decay", 0.0)}),
    "adagrad": (
        torch.optim.Adagrad,
        {},
        {
            "gamma": ("lr", 1e-2),
            "lambda": ("weight_decay", 0.0),
            "eta": ("lr_decay", 0.0),
            "epsilon": ("eps", 1e-10),
        },
    ),
    "adam": (torch.optim.Adam, _BY_COUNT, {**_ADAM, "lambda": ("weight_decay", 0.0)}),
    "amsgrad": (
        torch.optim.Adam,
        {**_BY_COUNT, "amsgrad": True, "corrected_max": True},
        {**_ADAM, "lambda": ("weight_decay", 0.0)},
    ),
    "adamw": (torch.optim.AdamW, _BY_COUNT, {**_ADAM, "lambda": ("weight_decay", 1e-2)}),
    "ftrl": (
        optim.FTRL,
        {},
        {
            "gamma": ("lr", 5e-3),
            "alpha": ("lr", 5e-3),
            "beta": ("beta", 0.0),
            "lambda1": ("lambda1", 0.0),
            "lambda2": ("lambda2", 0.0),
        },
    ),
    "lion": (
        optim.Lion,
        {},
        {
            "eta": ("lr", 3e-4),
            "gamma": ("lr", 3e-4),
            "beta1": ("beta1", 0.9),
            "beta2": ("beta2", 0.99),
            "lambda": ("weight_decay", 1e-2),
        },
    ),
}


def optimizer(given: Mapping[str, Any]) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """``(optimizer_type, optimizer_kwargs)`` of e.g. ``{"name": "adamw", "gamma": 0.001}``.

    Raises:
        ValueError: the name is not known, or two keys say the same number. A key that is not known warns.
    """
    name = given.get("name")
    if not isinstance(name, str) or name not in _OPTIMIZERS:
        raise ValueError(f"an optimizer's name must be one of {', '.join(_OPTIMIZERS)}, got {name!r}")
    optimizer_type, kwargs, keys = _OPTIMIZERS[name]
    values: dict[str, Any] = dict(keys.values())
    said_by: dict[str, str] = {}
    for key in keys.keys() & given.keys():
        keyword = keys[key][0]
        if keyword in said_by:
            both = " and ".join(sorted((said_by[keyword], key)))
            raise ValueError(f"optimizer {name!r}: {both} are both its {keyword}: give one of them")
        said_by[keyword] = key
        values[keyword] = given[key]
    _warn_of_others("optimizer", given, {"name", *keys})
    if "beta1" in values:
        values["betas"] = (values.pop("beta1"), values.pop("beta2"))
    return optimizer_type, {**kwargs, **values}


def initializer(given: Mapping[str, Any] | init.Initializer | None, dim: int) -> init.Initializer:
    """The initializer of e.g. ``{"name": "truncate_normal", "stddev": 0.0001}``; uniform for None and ``{}``.

    Raises:
        ValueError: the name is not known, or a number is out of range. A key that is not known warns.
        TypeError: it is neither a dict nor an initializer.
    """
    if isinstance(given, init.Initializer):
        return given
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"initializer must be a dict or one of damo.init's, got {type(given).__name__}")
    given = given or {"name": "uniform"}
    name = given.get("name")
    numbers = {key: _number(key, value) for key, value in given.items() if key in ("min", "max", "mean", "stddev")}
    mean, std = numbers.get("mean", 0.0), numbers.get("stddev", 1.0)
    bound = math.sqrt(1 / dim) if dim > 0 else 1.0
    match name:
        case "zeros":
            known: set[str] = set()
            result: init.Initializer = init.Constant(0.0)
        case "ones":
            known = set()
            result = init.Constant(1.0)
        case "uniform":
            known = {"min", "max"}
            result = init.Uniform(numbers.get("min", -bound), numbers.get("max", bound))
        case "random_uniform":
            known = {"min", "max"}
            result = init.Uniform(numbers.get("min", -1.0), numbers.get("max", 1.0))
        case "normal" | "random" | "random_normal":
            known = {"mean", "stddev"}
            result = init.Normal(mean, std)
        case "truncate_normal":
            known = {"mean", "stddev"}
            result = init.TruncatedNormal(mean, std, mean - 2 * std, mean + 2 * std)
        case "xavier":
            known = set()
            result = init.Uniform(-math.sqrt(3) * bound, math.sqrt(3) * bound)
        case _:
            names = "zeros, ones, uniform, random_uniform, random, normal, random_normal, truncate_normal, xavier"
            raise ValueError(f"an initializer's name must be one of {names}, got {name!r}")
    _warn_of_others("initializer", given, {"name", *known})
    return result


def admission(given: Mapping[str, Any]) -> Admit:
    """What a counting filter, as ``{"count": 15, "capacity": 1 << 28, "fpr": 0.001}``, lets in.

    An id gets its row once it was seen `count` times. Sightings are counted exactly here, of any number of ids, and not
    forgotten: `capacity` and `fpr`, by which a filter is as large as it is, have no effect, nor has where its file is.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"filter must be a dict of count, capacity and fpr, got {given!r}")
    count = given.get("count", 15)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 15:
        raise ValueError(f"a filter's count must be an int in 1..15, got {count!r}")
    if sized := sorted(given.keys() & {"capacity", "fpr", "ffp"}):
        _log.info("a filter's %s: sightings are counted exactly here, of any number of ids", ", ".join(sized))
    _warn_of_others("filter", {"name": "count", **given}, {"name", "count", "capacity", "fpr", "ffp"})
    return Admit(sightings=count, within_steps=None)


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"an initializer's {key} must be a number, got {value!r}") from None


def _warn_of_others(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    others = sorted(set(given) - known)
    if others:
        warnings.warn(f"{what} {given['name']!r}: {', '.join(others)} has no effect here", stacklevel=4)
