"""What of a checkpoint fits a model that has changed since, by name and shape: what ``strict=False`` loads."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class IncompatibleKeys:
    """What of a checkpoint and a model did not go together. Unpacks as torch's: missing keys, unexpected keys.

    Args:
        missing_keys: parameters and buffers that the checkpoint lacks; the model's stay as they were.
        unexpected_keys: those that the model lacks.
        mismatched_keys: of another shape, ``(saved, of the model)``; the model's stay as they were.
        missing_tables: of the model, which the checkpoint lacks: they have no rows.
        unexpected_tables: that the model does not have. The store keeps them: `EmbeddingStore.table` reads them.
        missing_optimizer_keys: parameters of which the optimizer keeps the state that it had, a new one none.
        unexpected_optimizer_keys: parameters whose saved state was left out; numbers, if the checkpoint has no names.
        mismatched_scheduler_keys: lists of another length, of a number for each parameter group, which stay as they
            were. ``"0.base_lrs"`` is of the first scheduler.
    """

    missing_keys: list[str] = field(default_factory=list)
    unexpected_keys: list[str] = field(default_factory=list)
    mismatched_keys: dict[str, tuple[object, object]] = field(default_factory=dict)
    missing_tables: list[str] = field(default_factory=list)
    unexpected_tables: list[str] = field(default_factory=list)
    missing_optimizer_keys: list[str] = field(default_factory=list)
    unexpected_optimizer_keys: list[str] = field(default_factory=list)
    mismatched_scheduler_keys: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[list[str]]:
        return iter((self.missing_keys, self.unexpected_keys))


def shapes(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...] | str]:
    """Of what is no tensor, that it is none."""
    return {
        name: tuple(value.shape) if isinstance(value, torch.Tensor) else "no tensor"
        for name, value in state_dict.items()
    }


def fitting_model(now: Mapping[str, Any], saved: Mapping[str, Any], found: IncompatibleKeys) -> dict[str, Any]:
    """A state dict with what fits of `saved`, and else of `now`. `found` gets what does not."""
    has, had = shapes(now), shapes(saved)
    found.missing_keys = [name for name in now if name not in saved]
    found.unexpected_keys = [name for name in saved if name not in now]
    found.mismatched_keys = {name: (had[name], has[name]) for name in now if name in saved and had[name] != has[name]}
    return {**now, **{name: saved[name] for name in now if had.get(name) == has[name]}}


def fitting_scheduler(now: Any, saved: Any, name: str, found: IncompatibleKeys) -> Any:
    """The state of a scheduler with its own lists where the saved ones are of another length. `found` gets those."""
    if isinstance(now, dict) and isinstance(saved, dict):
        return {key: fitting_scheduler(now.get(key), value, f"{name}.{key}", found) for key, value in saved.items()}
    if isinstance(now, list | tuple) and isinstance(saved, list | tuple):
        if len(now) != len(saved):
            found.mismatched_scheduler_keys.append(name)
            return now
        pairs = enumerate(zip(now, saved, strict=True))
        return type(saved)([fitting_scheduler(ours, theirs, f"{name}.{i}", found) for i, (ours, theirs) in pairs])
    return saved
