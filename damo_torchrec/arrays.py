"""From what users have to tensors: ids and numbers that come as tensors, NumPy arrays or sequences.

The one place that says what is taken and what it becomes. Nothing is rounded but numbers to float32, and nothing of
another kind is taken for a number: bools, strings and objects are refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from damo_torchrec.tensors import plain
from damo_torchrec.torch_at_use import is_tensor, torch

_SEQUENCES = (list, tuple, range)


def as_ids(ids: object, what: str = "ids") -> torch.Tensor:
    """Ids as the engine takes them: int64 ``(n,)`` on the CPU.

    Args:
        ids: a tensor or NumPy array of any integer dtype, what NumPy makes one of (such as pandas' Series), or a list,
            tuple or range of ints, Python's or NumPy's; of shape ``(n,)``. All become int64 without loss.
        what: they are called, for messages.

    Raises:
        TypeError: they are no integers: floating point, even if whole, bool, strings, objects, masked.
        ValueError: one does not fit int64, as of uint64; the shape is another.
    """
    if isinstance(ids, _SEQUENCES):
        values = _of_ints(ids, what)
    else:
        given = _as_tensor(ids, what)
        if given is None or given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise TypeError(f"{what} must be a tensor or array of integers, or ints, got {_describe(ids)}")
        given = plain(what, given).detach()
        values = given.view(torch.int64) if given.dtype == torch.uint64 else given.to(torch.int64)
        if given.dtype == torch.uint64 and bool((values < 0).any()):
            raise ValueError(f"{what} must fit int64, got {int(values[values < 0][0]) + 2**64}")
    if values.dim() != 1:
        raise ValueError(f"{what} must have the shape (n,), got {tuple(values.shape)}")
    return values


def as_numbers(numbers: object, what: str) -> torch.Tensor:
    """Numbers as the engine takes them: float32 on the CPU, of the shape that they have.

    Args:
        numbers: a floating point tensor or NumPy array, what NumPy makes one of, or a list or tuple of floats or ints,
            or of such lists of one length. They are rounded to the nearest float32; what is beyond its range becomes
            infinite, which callers refuse.
        what: they are called, for messages.

    Raises:
        TypeError: they are none: integers of a tensor or an array, bool, strings, objects, masked.
        ValueError: lists differ in their length.
    """
    if isinstance(numbers, _SEQUENCES):
        return torch.from_numpy(_of_numbers(numbers, what)).to(torch.float32)
    given = _as_tensor(numbers, what)
    if given is None or not given.is_floating_point():
        raise TypeError(
            f"{what} must be a floating point tensor or array, or lists of floats, got {_describe(numbers)}"
        )
    return plain(what, given).detach().to(torch.float32)


def _of_ints(ids: list[Any] | tuple[Any, ...] | range, what: str) -> torch.Tensor:
    for i in ids:
        if isinstance(i, bool) or not isinstance(i, int | np.integer):
            raise TypeError(f"{what} must be ints, got {ids!s:.80}")
        if not -(2**63) <= int(i) < 2**63:
            raise ValueError(f"{what} must fit int64, got {i}")
    return torch.tensor([int(i) for i in ids], dtype=torch.int64, device="cpu")


def _of_numbers(numbers: list[Any] | tuple[Any, ...] | range, what: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(numbers)
    except ValueError as error:
        raise ValueError(f"{what} must be lists of one length: {error}") from None
    if array.size and array.dtype.kind not in "fiu":
        raise TypeError(f"{what} must be floats, got {numbers!s:.80}")
    return array.astype(np.float64)


def _as_tensor(value: object, what: str) -> torch.Tensor | None:
    """A tensor, or one over the memory of an array; None of what is neither."""
    if is_tensor(value):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{what} must not be masked: fill or compress the array first")
    if not hasattr(value, "__array__"):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > np.dtype(np.float64).itemsize:
        return None
    array = np.require(array.astype(array.dtype.newbyteorder("="), copy=False), requirements=["C", "W"])
    return torch.from_numpy(array)


def _describe(value: object) -> str:
    if is_tensor(value):
        return f"a tensor of {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__
