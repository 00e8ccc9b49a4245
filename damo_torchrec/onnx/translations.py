"""FBGEMM's operators that TorchRec's jagged tensors use, for torch.onnx: as standard operators."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18

op: Any = opset18  # typed for tensors of one element type alone


def translations() -> dict[Any, Callable[..., Any]]:
    """What torch.onnx takes as ``custom_translation_table``."""
    fbgemm = torch.ops.fbgemm
    return {
        fbgemm.asynchronous_complete_cumsum.default: _complete_cumsum,
        fbgemm.asynchronous_exclusive_cumsum.default: _exclusive_cumsum,
        fbgemm.asynchronous_inclusive_cumsum.default: _inclusive_cumsum,
        fbgemm.jagged_to_padded_dense.default: _jagged_to_padded_dense,
        fbgemm.jagged_to_padded_dense_forward.default: _jagged_to_padded_dense,
        fbgemm.jagged_2d_to_dense.default: _jagged_2d_to_dense,
        fbgemm.jagged_1d_to_dense.default: _jagged_1d_to_dense,
    }


def _inclusive_cumsum(lengths: Any) -> Any:
    return op.CumSum(lengths, op.Constant(value_int=0))


def _exclusive_cumsum(lengths: Any) -> Any:
    return op.CumSum(lengths, op.Constant(value_int=0), exclusive=1)


def _complete_cumsum(lengths: Any) -> Any:
    zero = op.CastLike(op.Constant(value_ints=[0]), lengths)
    return op.Concat(zero, _inclusive_cumsum(lengths), axis=0)


def _jagged_2d_to_dense(values: Any, offsets: Any, max_sequence_length: int) -> Any:
    return _jagged_to_padded_dense(values, [offsets], [max_sequence_length])


def _jagged_1d_to_dense(values: Any, offsets: Any, max_sequence_length: int, padding_value: int = 0) -> Any:
    return _jagged_to_padded_dense(values, [offsets], [max_sequence_length], padding_value)


def _jagged_to_padded_dense(
    values: Any, offsets: Sequence[Any], max_lengths: Sequence[int], padding_value: float = 0.0
) -> Any:
    """``(N, ...)`` to ``(B, L, ...)``: the first L of each bag, and the padding value beyond its end."""
    if len(offsets) != 1:
        raise NotImplementedError(f"jagged_to_padded_dense of {len(offsets)} jagged dimensions cannot be exported")
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    axis, last = op.Constant(value_ints=[0]), op.Constant(value_ints=[-1])
    start, length = op.Constant(value_ints=[0]), op.Constant(value_int=max_lengths[0])
    ends = op.Cast(offsets[0], to=onnx.TensorProto.INT64)
    begin = op.Unsqueeze(op.Slice(ends, start, last, axis), last)
    end = op.Unsqueeze(op.Slice(ends, op.Constant(value_ints=[1]), op.Constant(value_ints=[2**63 - 1]), axis), last)
    item = op.Add(begin, op.Range(zero, length, one))
    taken = op.Where(op.Less(item, end), op.Add(item, one), zero)
    row_shape = op.Concat(op.Constant(value_ints=[1]), op.Shape(values, start=1), axis=0)
    padding = op.Expand(op.CastLike(op.Constant(value_float=float(padding_value)), values), row_shape)
    return op.Gather(op.Concat(padding, values, axis=0), taken, axis=0)
