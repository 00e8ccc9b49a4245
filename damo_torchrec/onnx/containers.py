"""Taking arguments apart that hold others, and making them again: dicts, lists, tuples and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

Path = tuple[str, ...]
_LEAVES = (KeyedJaggedTensor, JaggedTensor, torch.Tensor)
_CONSTANTS = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Parts:
    """What an argument holds.

    Args:
        leaves: its tensors, KeyedJaggedTensors and JaggedTensors, by where they are: the argument's name, then fields.
        make: the argument anew, of others in their place.
    """

    leaves: dict[Path, Any]
    make: Callable[[Mapping[Path, Any]], Any]


def take_apart(value: Any, path: Path) -> Parts:
    """The parts of an argument, or of what is at `path` in one.

    Raises:
        TypeError: it is, or holds, what is none of these, or a dataclass that its fields do not make again.
        ValueError: a dict has keys that are no names.
    """
    where = f"argument {'.'.join(path)!r}"
    if isinstance(value, _LEAVES):
        return Parts({path: value}, lambda leaves: leaves[path])
    if isinstance(value, _CONSTANTS):
        return Parts({}, lambda _: value)
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str) or not key]:
            raise ValueError(f"{where} must have names as keys, got {odd!r:.80}")
        fields = {key: take_apart(item, (*path, key)) for key, item in value.items()}
        return _together(fields, lambda made: _filled(value, made))
    if isinstance(value, list | tuple):
        names = getattr(value, "_fields", None)
        if names is not None:
            fields = {name: take_apart(item, (*path, name)) for name, item in zip(names, value, strict=True)}
            return _together(fields, lambda made: value._replace(**made))  # type: ignore[union-attr]  # a NamedTuple
        items = {str(i): take_apart(item, (*path[:-1], f"{path[-1]}_{i}")) for i, item in enumerate(value)}
        return _together(items, lambda made: type(value)(made.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _of_dataclass(value, path, where)
    raise TypeError(
        f"{where} must be a KeyedJaggedTensor, a JaggedTensor, a tensor, a constant, or a dict, list, tuple or "
        f"dataclass of them, got {type(value).__name__}"
    )


def _of_dataclass(value: Any, path: Path, where: str) -> Parts:
    """Its fields but for those that it makes itself (``init=False``), which it makes again."""
    given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
    parts = {name: take_apart(item, (*path, name)) for name, item in given.items()}
    try:
        made = dataclasses.replace(value, **given)
        changed = [name for name, part in parts.items() if not _holds(getattr(made, name), (*path, name), part)]
        for field in dataclasses.fields(value):
            getattr(made, field.name)
    except Exception as error:  # of whatever kind: it is the class's own code
        raise _cannot_be_made(value, where, error) from error
    if changed:
        raise _cannot_be_made(value, where, f"it changes {changed}")
    return _together(parts, lambda made: dataclasses.replace(value, **made))


def _holds(value: Any, path: Path, parts: Parts) -> bool:
    """Whether there are the same leaves in it."""
    leaves = take_apart(value, path).leaves
    return leaves.keys() == parts.leaves.keys() and all(
        leaf is leaves[at] or (isinstance(leaf, torch.Tensor) and torch.equal(leaf, leaves[at]))
        for at, leaf in parts.leaves.items()
    )


def _cannot_be_made(value: Any, where: str, reason: object) -> TypeError:
    return TypeError(
        f"{where} is a {type(value).__name__} that dataclasses.replace cannot make again of its fields: {reason}"
    )


def _filled(value: dict[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    filled = copy.copy(value)
    filled.update(made)
    return filled


def _together(fields: Mapping[str, Parts], make: Callable[[dict[str, Any]], Any]) -> Parts:
    leaves = {path: leaf for parts in fields.values() for path, leaf in parts.leaves.items()}
    return Parts(leaves, lambda given: make({name: parts.make(given) for name, parts in fields.items()}))
