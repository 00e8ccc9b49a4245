"""Checking a request before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from damo_torchrec.graph_card import Feature
from damo_torchrec.serving.arrays import Array, as_array
from damo_torchrec.serving.bags import parts_of_bags
from damo_torchrec.torch_at_use import is_keyed_jagged

BATCH = "batch"
_PARTS = ("values", "lengths", "weights")


@dataclass(frozen=True)
class Argument:
    """An array of a request.

    Args:
        name: its name.
        dtype: of the array that is made of it.
        shape: sizes, or names of sizes, which are the same wherever the name is; None for a dimension of any size, and
            for a shape of any dimensions.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Request:
    """A request that fits its model: arrays by name, and how many samples it has."""

    arrays: Mapping[str, Array]
    batch: int


class Signature:
    """What requests a model takes.

    Args:
        features: its KeyedJaggedTensors.
        arguments: its other arguments.
        jagged: names of its JaggedTensors.
        most_ids: how many ids there may be in a request.
    """

    def __init__(
        self, features: Mapping[str, Feature], arguments: Sequence[Argument], jagged: Sequence[str], most_ids: int
    ) -> None:
        self.features = dict(features)
        self._jagged = jagged
        self._most_ids = most_ids
        self._arguments: dict[str, Argument] = {}
        for name, feature in features.items():
            shapes: list[tuple[int | str, ...]] = [(f"{name}.values",), (len(feature.keys), BATCH), (f"{name}.values",)]
            for part, shape in list(zip(_PARTS, shapes, strict=True))[: 3 if feature.weighted else 2]:
                dtype = np.dtype(np.float32 if part == "weights" else np.int64)
                argument = Argument(f"{name}.{part}", dtype, shape)
                self._arguments[argument.name] = argument
        for argument in arguments:
            self._arguments.setdefault(argument.name, argument)

    @property
    def arguments(self) -> dict[str, Argument]:
        """The arrays of a request, by name."""
        return dict(self._arguments)

    def check(self, inputs: Mapping[str, Any]) -> Request:
        """Makes a request of what `Predictor.predict` was given. Errors are its."""
        given = self._by_name(inputs)
        arrays = {name: _as_argument(a, given[name]) for name, a in self._arguments.items()}
        sizes: dict[str, tuple[int, str]] = {}
        for name, argument in self._arguments.items():
            _check_shape(argument, arrays[name].shape, sizes)
        for name in self.features:
            values = arrays[f"{name}.values"]
            if len(values) > self._most_ids:
                raise ValueError(
                    f"{name}.values holds {len(values)} ids, more than the {self._most_ids} that memory_budget allows"
                )
            _check_lengths(name, arrays[f"{name}.lengths"], len(values))
            if self.features[name].weighted and not np.isfinite(arrays[f"{name}.weights"]).all():
                raise ValueError(f"{name}.weights must be finite")
        for name in self._jagged:
            if {f"{name}.values", f"{name}.lengths"} <= arrays.keys():  # else the model does not use one of them
                _check_lengths(name, arrays[f"{name}.lengths"], len(arrays[f"{name}.values"]))
        first = next((array for array in arrays.values() if array.ndim > 0), None)
        batch = sizes[BATCH][0] if BATCH in sizes else (len(first) if first is not None else 0)
        return Request(arrays, batch)

    def _by_name(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays that were given, all of those that there should be; features in their parts."""
        if not isinstance(inputs, Mapping):
            raise TypeError(f"inputs must be a dict of arrays by name, got {type(inputs).__name__}")
        given = dict(inputs)
        for name, feature in self.features.items():
            if name in given:
                features = given.pop(name)
                if isinstance(features, Mapping):
                    weights = f"{name}.weights"
                    by_key = feature.weighted and isinstance(given.get(weights), Mapping)
                    parts = parts_of_bags(name, feature, features, given.pop(weights) if by_key else None)
                else:
                    parts = _parts(name, feature, features)
                if both := sorted(parts.keys() & given.keys()):
                    raise ValueError(f"inputs {both} were given twice, once as the KeyedJaggedTensor {name!r}")
                given.update(parts)
        expected = sorted(self._arguments)
        unknown = [str(name) for name in given if name not in self._arguments]
        if unknown:
            raise ValueError(f"inputs {unknown} are not known; expected {expected}")
        missing = [name for name in expected if name not in given]
        if missing:
            raise ValueError(f"inputs {missing} are missing; expected {expected}, got {sorted(given)}")
        return given


def _as_argument(argument: Argument, value: Any) -> Array:
    """As an array; a list of no samples, which has one dimension whatever it is a list of, with all of them."""
    array = as_array(argument.name, value, argument.dtype)
    if isinstance(value, list) and not value and argument.shape is not None and argument.shape[:1] == (BATCH,):
        return array.reshape(0, *(size if isinstance(size, int) else 0 for size in argument.shape[1:]))
    return array


def _check_shape(argument: Argument, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    """Checks one array, and notes sizes that have a name, with the array that had it first."""
    if argument.shape is None:
        return
    expected = ", ".join("any" if size is None else str(size) for size in argument.shape)
    if len(shape) != len(argument.shape):
        raise ValueError(f"{argument.name} must have the shape ({expected}), got {shape}")
    for wanted, size in zip(argument.shape, shape, strict=True):
        if isinstance(wanted, int) and size != wanted:
            raise ValueError(f"{argument.name} must have the shape ({expected}), got {shape}")
        if isinstance(wanted, str):
            known, where = sizes.setdefault(wanted, (size, argument.name))
            if known != size:
                raise ValueError(
                    f"{argument.name} must have the shape ({expected}), got {shape}: {wanted} is {known} in {where}"
                )


def _check_lengths(name: str, lengths: Array, n: int) -> None:
    least, largest = int(lengths.min(initial=0)), int(lengths.max(initial=0))
    if least < 0:
        raise ValueError(f"{name}.lengths must not be negative, got {least}")
    # With one alone beyond n, the sum may be beyond int64.
    total = largest if largest > n else int(lengths.sum())
    if total != n:
        raise ValueError(f"{name}.lengths must sum to the {n} ids in {name}.values, got {total}")


def _parts(name: str, feature: Feature, features: object) -> dict[str, Any]:
    """Values, lengths and weights, with the keys in the model's order; keys that it does not have are passed over."""
    if not is_keyed_jagged(features):
        raise TypeError(
            f"{name} must be a KeyedJaggedTensor, got {type(features).__name__}; as arrays it is {name}.values, "
            f"{name}.lengths{f' and {name}.weights' if feature.weighted else ''}"
        )
    keys = list(features.keys())
    if absent := [key for key in feature.keys if key not in keys]:
        raise ValueError(f"{name} lacks the keys {absent}; expected {list(feature.keys)}, got {keys}")
    if features.variable_stride_per_key():
        raise ValueError(f"{name} must have one batch size, got {features.stride_per_key()}")
    if feature.weighted and features.weights_or_none() is None:
        raise ValueError(f"{name} must have weights, got a KeyedJaggedTensor without")
    values = as_array(f"{name}.values", features.values(), np.int64)
    lengths = as_array(f"{name}.lengths", features.lengths(), np.int64)
    if values.ndim != 1 or lengths.size != len(keys) * features.stride():
        raise ValueError(
            f"{name} must have ids of shape (n,) and a length for each of {len(keys)} keys and {features.stride()} "
            f"samples, got {values.shape} and {lengths.shape}"
        )
    _check_lengths(name, lengths, len(values))
    parts = {"values": values}
    if feature.weighted:
        parts["weights"] = as_array(f"{name}.weights", features.weights(), np.float32)
        if parts["weights"].shape != values.shape:
            raise ValueError(f"{name}.weights must have the shape {values.shape}, got {parts['weights'].shape}")
    lengths = lengths.reshape(len(keys), features.stride())
    if tuple(keys) != feature.keys:
        parts, lengths = _rearrange(parts, lengths, [keys.index(key) for key in feature.keys])
    return {f"{name}.{part}": array for part, array in parts.items()} | {f"{name}.lengths": lengths}


def _rearrange(parts: dict[str, Array], lengths: Array, order: list[int]) -> tuple[dict[str, Array], Array]:
    ends = np.cumsum(lengths.sum(axis=1))[:-1]
    by_key = {part: np.split(array, ends) for part, array in parts.items()}
    return {part: np.concatenate([arrays[i] for i in order]) for part, arrays in by_key.items()}, lengths[order]
