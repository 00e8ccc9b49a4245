"""From what a caller has, arrays, tensors or nested lists, to the arrays of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from damo_torchrec.tensors import plain
from damo_torchrec.torch_at_use import is_tensor, torch

Array = npt.NDArray[Any]

# What may be given for an array of this kind of dtype: more than the same kind only where nothing can be lost.
_ACCEPTED = {"i": "iu", "u": "iu", "f": "fiu", "b": "b"}
_NAMES = {"i": "integers", "u": "integers", "f": "numbers", "b": "bools"}


def as_array(name: str, value: Any, dtype: npt.DTypeLike) -> Array:
    """`value` as a contiguous array of `dtype`.

    Integers are taken if they fit; numbers become floats by rounding, infinities and NaN as they are.

    Args:
        name: for messages.
        value: a NumPy array, a torch tensor, or a number, or nested lists of numbers.
        dtype: of the result.

    Raises:
        TypeError: it is none of these, or of another kind: floats or bools for integers, for example.
        ValueError: lists are ragged, or an integer does not fit.
    """
    dtype = np.dtype(dtype)
    array = _to_numpy(name, value, dtype)
    if array.dtype.kind not in _ACCEPTED[dtype.kind]:
        raise TypeError(f"{name} must be {_NAMES[dtype.kind]}, got {array.dtype}")
    if dtype.kind in "iu" and array.dtype != dtype and array.size > 0:
        limits = np.iinfo(dtype)
        for number in (int(array.min()), int(array.max())):
            if not limits.min <= number <= limits.max:
                raise ValueError(f"{name} must fit {dtype}, got {number}")
    with np.errstate(over="ignore"):
        return np.require(array, dtype, ["C", "ALIGNED", "ENSUREARRAY"])


def _to_numpy(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must have all of its values, got a masked array: fill it")
    if isinstance(value, np.ndarray):
        array = np.asarray(value)
        return array if array.dtype != object else _of_objects(name, array, dtype)
    if is_tensor(value):
        return _of_tensor(name, value)
    if isinstance(value, list | tuple | int | float | np.generic):
        try:
            objects = np.array(value, dtype=object)
        except ValueError as error:  # where lists hold arrays of several shapes
            raise ValueError(f"{name} must be one array, got ragged lists") from error
        return _of_objects(name, objects, dtype)
    raise TypeError(f"{name} must be an array, a tensor or nested lists of numbers, got {type(value).__name__}")


def _of_tensor(name: str, value: torch.Tensor) -> Array:
    values = plain(name, value).detach()
    if values.dtype is torch.bfloat16:
        values = values.to(torch.float32)
    try:
        array: Array = values.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TypeError(f"{name} must be a dense tensor of numbers, got one of {value.dtype}: {error}") from error
    return array


def _of_objects(name: str, objects: Array, dtype: np.dtype[Any]) -> Array:
    """Of Python's numbers: NumPy would take a bool among ints, or an int beyond int64, for what it is not."""
    if objects.size == 0:
        return np.empty(objects.shape, dtype)
    kinds = {type(item) for item in objects.reshape(-1)}
    if any(issubclass(kind, list | tuple | np.ndarray) for kind in kinds):
        raise ValueError(f"{name} must be one array, got ragged lists")
    accepted = {"i": (int, np.integer), "u": (int, np.integer), "b": (bool, np.bool_)}
    allowed = accepted.get(dtype.kind, (int, float, np.integer, np.floating))
    for kind in kinds:
        if not issubclass(kind, allowed) or (kind is bool and dtype.kind != "b"):
            raise TypeError(f"{name} must be {_NAMES[dtype.kind]}, got {kind.__name__}")
    try:
        return objects.astype(dtype if dtype.kind in "iub" else np.float64)
    except OverflowError as error:
        raise ValueError(f"{name} must fit {dtype}: {error}") from error
