"""The optimizer that a TorchRec collection was set up with: of a fused one, or of ``apply_optimizer_in_backward``."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torchrec
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection, FusedEmbeddingCollection

from damo_torchrec.optim.rules import RULES, without_neutral

Optimizer = tuple[type[torch.optim.Optimizer], dict[str, Any]]

_log = logging.getLogger(__name__)
# Under the name of torch's class, a fused collection has FBGEMM's rule with FBGEMM's defaults.
_FBGEMMS: Mapping[type, type[torch.optim.Optimizer]] = {
    torch.optim.SGD: torchrec.optim.SGD,
    torch.optim.Adagrad: torchrec.optim.Adagrad,
    torch.optim.Adam: torchrec.optim.Adam,
}


def given_optimizers(module: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, Optimizer]:
    """What trains each table, ``(optimizer_type, optimizer_kwargs)`` with the learning rate of now.

    Args:
        module: one of TorchRec's collections.
        weights: of its tables.

    Returns:
        By table; nothing of those whose weight is left to an optimizer of the program's own.

    Raises:
        ValueError: a table has several optimizers, or a fused collection several learning rates.
    """
    if isinstance(module, FusedEmbeddingBagCollection | FusedEmbeddingCollection):
        return dict.fromkeys(weights, _fused(module))
    return {table: _in_backward(table, weight) for table, weight in weights.items() if _applied(weight)}


def sums_of_squares(module: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of the tables' Adagrad, as TorchRec's ``momentum_1``: by table, ``(n,)`` or ``(n, dim)``.

    A warning names tables with state of another optimizer, which is left behind.
    """
    if isinstance(module, FusedEmbeddingBagCollection | FusedEmbeddingCollection):
        saved = module.fused_optimizer().state_dict()["state"]
        states = {key.removesuffix(".weight").rpartition(".")[2]: state for key, state in saved.items()}
        sums = {table: state[key] for table, state in states.items() for key in state if key.endswith(".momentum_1")}
    else:
        states = {table: _applied(weight)[0].state[weight] for table, weight in weights.items() if _applied(weight)}
        sums = {
            table: state["sum"].reshape(len(weights[table]), -1) for table, state in states.items() if "sum" in state
        }
    if left := sorted(table for table, state in states.items() if state and table not in sums):
        _log.warning("optimizer state of the tables %s is left behind: it begins anew", ", ".join(left))
    return sums


def as_given(optimizer_type: type) -> str:
    """How a message begins that names a class which `given_optimizers` returned: with the one that was given."""
    for torchs, fbgemms in _FBGEMMS.items():
        if fbgemms is optimizer_type:
            return f"torch.optim.{torchs.__name__} is trained here as FBGEMM has it, "
    return ""


def _fused(module: Any) -> Optimizer:
    kwargs = dict(module.optimizer_kwargs())
    given = kwargs.pop("lr", kwargs.pop("learning_rate", None))
    now = {float(group["lr"]) for group in module.fused_optimizer().param_groups}
    if len(now) != 1:
        raise ValueError(f"a fused collection has the learning rates {sorted(now)}: give swap an optimizer_type")
    (lr,) = now
    if given is not None and lr == float(np.float32(given)):  # FBGEMM rounds it
        lr = float(given)
    kind = module.optimizer_type()
    return _fbgemms(kind, {**kwargs, "lr": lr})


def _fbgemms(kind: type[torch.optim.Optimizer], kwargs: Mapping[str, Any]) -> Optimizer:
    """What FBGEMM has under the name of torch's class; what changes nothing in torch's is left out, if it has none."""
    if kind not in _FBGEMMS:
        return kind, dict(kwargs)
    return _FBGEMMS[kind], without_neutral(kind, kwargs, RULES[_FBGEMMS[kind]].keywords)


def _applied(weight: torch.Tensor) -> list[torch.optim.Optimizer]:
    return list(getattr(weight, "_in_backward_optimizers", []))


def _in_backward(table: str, weight: torch.Tensor) -> Optimizer:
    applied = _applied(weight)
    if len(applied) > 1:
        names = ", ".join(type(optimizer).__name__ for optimizer in applied)
        raise ValueError(f"table {table!r} has {len(applied)} optimizers in its backward, {names}: a row has one")
    (optimizer,) = applied
    (group,) = optimizer.param_groups
    given: dict[str, Any] = vars(weight)["_optimizer_kwargs"][0]  # torch puts it there
    kind = type(optimizer)
    if weight.is_meta:  # DistributedModelParallel would have FBGEMM train it, which has defaults of its own
        return _fbgemms(kind, {**given, "lr": float(group["lr"])})
    # TorchRec's own classes have another eps than FBGEMM's rules of that name.
    own = {name: group[name] for name in ("eps",) if name in group}
    return kind, {**own, **given, "lr": float(group["lr"])}
