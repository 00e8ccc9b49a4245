"""FBGEMM's operators that TorchRec's jagged tensors use, for torch.onnx: as standard operators."""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18

op: Any = opset18  # typed for tensors of one element type alone


class UntranslatableError(ValueError):
    """A call that no graph can make, with what to call in its place."""


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
        fbgemm.offsets_range.default: _offsets_range,
        fbgemm.permute_2D_sparse_data.default: _permute_2d_sparse_data,
        fbgemm.permute_multi_embedding.default: _permute_multi_embedding,
        fbgemm.permute_multi_embedding_function.default: _permute_multi_embedding,
        fbgemm.permute_pooled_embs.default: _permute_pooled_embs,
        fbgemm.permute_pooled_embs_auto_grad.default: _permute_pooled_embs,
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
    if not isinstance(max_lengths[0], int):
        raise UntranslatableError("a padded tensor is as long as its longest bag: give to_padded_dense a length")
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


def _permute_2d_sparse_data(
    permute: Any, lengths: Any, values: Any, weights: Any = None, permuted_lengths_sum: Any = None
) -> tuple[Any, Any, Any]:
    """The items of some keys, as often as `permute` names them: ``lengths (F, B)``, ``values (N,)``."""
    permuted_lengths = op.Gather(lengths, permute, axis=0)
    items = op.ReduceSum(op.Cast(lengths, to=onnx.TensorProto.INT64), op.Constant(value_ints=[1]), keepdims=0)
    index = _permuted_segments(items, permute)
    permuted_values = op.Gather(values, index)
    # Without weights nothing reads the third output, but torch.onnx wants one.
    return permuted_lengths, permuted_values, permuted_values if weights is None else op.Gather(weights, index)


def _permute_multi_embedding(
    pooled: Sequence[Any], permutes: Any, in_shapes: Any, out_shapes: Any, out_lengths: Sequence[int]
) -> list[Any]:
    """Columns of several ``(B, D)`` in several others: `permutes` has input, output, begin in each, and how many."""
    moves = op.Cast(permutes, to=onnx.TensorProto.INT64)
    widths = op.Cast(in_shapes, to=onnx.TensorProto.INT64)
    zero, one, last = op.Constant(value_int=0), op.Constant(value_int=1), op.Constant(value_ints=[-1])
    of_input, of_output, begin, target, length = (op.Gather(moves, op.Constant(value_int=i), axis=1) for i in range(5))
    begin = op.Add(begin, op.Gather(op.CumSum(widths, zero, exclusive=1), of_input))
    pooled = op.Concat(*pooled, axis=1)
    outputs = []
    for number, width in enumerate(out_lengths):
        column = op.Unsqueeze(op.Range(zero, op.Constant(value_int=width), one), last)
        mine = op.Equal(of_output, op.Constant(value_int=number))
        inside = op.And(op.GreaterOrEqual(column, target), op.Less(column, op.Add(target, length)))
        shift = op.Mul(op.Cast(op.And(mine, inside), to=onnx.TensorProto.INT64), op.Sub(begin, target))
        source = op.Add(column, op.ReduceSum(shift, last, keepdims=1))
        outputs.append(op.Gather(pooled, op.Squeeze(source, last), axis=1))
    return outputs


def _permute_pooled_embs(
    pooled: Any, offsets: Any, permute: Any, inverse_offsets: Any = None, inverse_permute: Any = None
) -> Any:
    """Columns ``(B, D)`` in another order: those from `offsets[f]` to `offsets[f + 1]` for each f of `permute`."""
    ends = op.Cast(offsets, to=onnx.TensorProto.INT64)
    start, one, last = op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[-1])
    widths = op.Sub(op.Slice(ends, one, op.Constant(value_ints=[2**63 - 1])), op.Slice(ends, start, last))
    return op.Gather(pooled, _permuted_segments(widths, permute), axis=1)


def _offsets_range(offsets: Any, range_size: Any) -> Any:
    """How many items of the same bag are before each of so many items; bags begin at `offsets`."""
    size = op.Cast(range_size, to=onnx.TensorProto.INT64)
    begin = op.Cast(offsets, to=onnx.TensorProto.INT64)
    item = op.Range(op.Constant(value_int=0), op.Squeeze(size), op.Constant(value_int=1))
    return op.CastLike(op.Sub(item, op.Gather(begin, _segments(begin, size))), offsets)


def _permuted_segments(lengths: Any, permute: Any) -> Any:
    """Where the items are of segments of these lengths, one behind the other, in the order of `permute`."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    begin = op.Gather(op.CumSum(lengths, zero, exclusive=1), permute)
    permuted = op.Gather(lengths, permute)
    permuted_begin = op.CumSum(permuted, zero, exclusive=1)
    total = op.ReduceSum(permuted, keepdims=1)
    shift = op.Gather(op.Sub(begin, permuted_begin), _segments(permuted_begin, total))
    return op.Add(op.Range(zero, op.Squeeze(total), one), shift)


def _segments(begin: Any, total: Any) -> Any:
    """Which segment each of `total` items is in: the last that begins at or before it."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    marks = op.Expand(zero, op.Reshape(op.Add(total, one), op.Constant(value_ints=[1])))
    marks = op.ScatterElements(marks, begin, op.Expand(one, op.Shape(begin)), reduction="add")
    return op.Slice(op.Sub(op.CumSum(marks, zero), one), op.Constant(value_ints=[0]), op.Constant(value_ints=[-1]))
