"""What of a saved optimizer fits one whose parameters are others now: by the names that the model has for them."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torchrec.optim.keyed import KeyedOptimizer

from damo_torchrec.training.fitting import IncompatibleKeys, shapes


def parameter_names(model: nn.Module, optimizer: object) -> list[str]:
    """The model's names of an optimizer's parameters, in its own order, "" for those that are not the model's.

    Empty for an optimizer whose state dict has names itself, as TorchRec's.
    """
    if isinstance(optimizer, KeyedOptimizer) or not isinstance(optimizer, torch.optim.Optimizer):
        return []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names.get(id(parameter), "") for group in optimizer.param_groups for parameter in group["params"]]


def other_hyperparameters(now: Mapping[str, Any], saved: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which the saved optimizer has alone, and which this one has alone: both, if it is of another kind.

    Of one alone there are some where another version of torch has more of them.
    """
    had, has = ({str(name) for group in state.get("param_groups", []) for name in group} for state in (saved, now))
    return sorted(had - has), sorted(has - had)


def fitting_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, dense: Mapping[str, Any], found: IncompatibleKeys
) -> dict[str, Any]:
    """A state dict for it with what was saved of parameters that are as they were, and else what it has now.

    Hyperparameters of a group are those that the first such parameter in it had.

    Args:
        model: whose parameters it trains.
        optimizer: which has not been changed yet.
        dense: the checkpoint's dense part.
        found: gets the parameters that do not fit; `fitting_model` has filled in those of the model.

    Raises:
        ValueError: one of TorchRec's, without state in which anything could be put.
    """
    now, saved = optimizer.state_dict(), dense["optimizer"]
    if isinstance(optimizer, KeyedOptimizer):
        return _fitting_keyed(optimizer, now, saved, found)
    had, has = _numbers(saved, dense.get("parameter_names", [])), _numbers(now, parameter_names(model, optimizer))
    unchanged = not (found.missing_keys or found.unexpected_keys or found.mismatched_keys)
    if unchanged and "parameter_names" not in dense and len(had) == len(has):  # an earlier release saved it
        had = dict(zip(has, had.values(), strict=True))
    then, shape = shapes(dense["model"]), shapes(model.state_dict())
    fits = [name for name in has if name in had and name in then and then[name] == shape[name]]
    if all(other_hyperparameters(now, saved)):
        fits = []
    _note(has, had, fits, found)
    before_state = saved.get("state", {})
    taken = {has[name]: before_state[had[name]] for name in fits if had[name] in before_state}
    before = {number: group for group in saved.get("param_groups", []) for number in group["params"]}
    groups = []
    for group in now["param_groups"]:
        same: dict[str, Any] = next((before[had[name]] for name in fits if has[name] in group["params"]), {})
        own = {key: value for key, value in same.items() if key in group and key not in ("params", "param_names")}
        groups.append({**group, **own})
    return {**now, "state": {**now["state"], **taken}, "param_groups": groups}


def _fitting_keyed(
    optimizer: KeyedOptimizer, now: Mapping[str, Any], saved: Mapping[str, Any], found: IncompatibleKeys
) -> dict[str, Any]:
    """The same of TorchRec's, whose states have names."""
    has, had = now["state"], saved["state"]
    if had and not has and optimizer.params:
        raise ValueError("it has no state yet that what was saved could go into: call its init_state() first")
    fits = [name for name in has if name in had and _outline(has[name]) == _outline(had[name])]
    _note(has, had, fits, found)
    merged = {**now, "state": {**has, **{name: had[name] for name in fits}}}
    if "param_groups" in now:
        before = {tuple(group["params"]): group for group in saved.get("param_groups", [])}
        merged["param_groups"] = [before.get(tuple(group["params"]), group) for group in now["param_groups"]]
    return merged


def _note(has: Mapping[str, Any], had: Mapping[str, Any], fits: list[str], found: IncompatibleKeys) -> None:
    found.missing_optimizer_keys = [name for name in has if name not in fits]
    found.unexpected_optimizer_keys = [name for name in had if name not in fits]


def _numbers(state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The numbers that a state dict of torch's has for parameters, by name, or by themselves where it is not known."""
    numbers = list(chain.from_iterable(group["params"] for group in state.get("param_groups", [])))
    known = names if len(names) == len(numbers) else [""] * len(numbers)
    return {name or str(number): number for name, number in zip(known, numbers, strict=True)}


def _outline(state: object) -> object:
    """What must be the same for one state of TorchRec's to be loaded into another."""
    if isinstance(state, Mapping):
        return {name: _outline(value) for name, value in state.items()}
    return tuple(state.shape) if isinstance(state, torch.Tensor) else None
