"""What lookups are in an exported graph: functions of standard operators, opset 18.

Each is a function of the domain ``damo_torchrec`` with a body that any runtime can run. A runtime that has a kernel of
the same name (csrc/onnxruntime_ops/) runs that instead: results are the same but for the order in which rows of a bag
are summed.

Names in signatures are those of csrc/serving_rows.h, which writes the arrays: a row group holds the rows of all tables
of one dim; row 0 is zeros.
"""

import functools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import onnx
import onnx.parser

from damo_torchrec import _core

DOMAIN = "damo_torchrec"
VERSION = 1
OPSET = 18
# The first that has functions with attributes of their own opset; every runtime with opset 18 reads it.
IR_VERSION = 8

_INT64 = onnx.TensorProto.INT64
_UINT64 = onnx.TensorProto.UINT64
_FLOAT = onnx.TensorProto.FLOAT

# A row group's arrays, by table and by part.
_HASH = ["first_part", "num_parts", "first_bucket", "num_buckets", "first_row", "num_rows", "pilots", "keys"]


@dataclass(frozen=True)
class RowFormat:
    """How a group's rows are stored.

    Args:
        dtype: ``"float32"``, ``"float16"`` or ``"int8"``.
        shards: arrays that the rows are spread over.
        shard_rows: rows in each of them but the last; of no meaning for one.
    """

    dtype: str
    shards: int = 1
    shard_rows: int = 0

    @property
    def arrays(self) -> list[str]:
        """The names of its arrays in signatures."""
        scales = ["scales"] if self.dtype == "int8" else []
        return [f"rows_{shard}" for shard in range(self.shards)] + scales

    @property
    def suffix(self) -> str:
        """Tells functions for it from those for other formats."""
        name = {"float32": "", "float16": "Float16", "int8": "Int8"}[self.dtype]
        return name + (f"Shards{self.shards}x{self.shard_rows}" if self.shards > 1 else "")


@dataclass(frozen=True)
class Lookup:
    """A function that looks up rows of one group.

    Args:
        rows: how the group's rows are stored.
        pooled: whether it sums bags; else it gives the row of each id.
        weighted: whether ids have weights. Of pooled lookups.
        means: whether some outputs are means. Of pooled lookups.
        initial: whether unseen ids have a row for each table; else they read zeros.
    """

    rows: RowFormat
    pooled: bool
    weighted: bool = False
    means: bool = False
    initial: bool = False

    @property
    def name(self) -> str:
        """The function's, in its domain."""
        kind = f"{'Weighted' if self.weighted else ''}EmbeddingBag{'Mean' if self.means else ''}s"
        return (kind if self.pooled else "EmbeddingRows") + self.rows.suffix + ("Initial" if self.initial else "")

    @property
    def inputs(self) -> list[str]:
        """Its inputs: first those of each request, then arrays."""
        request = ["values", "lengths", *(["weights"] if self.weighted else [])]
        arrays = ["tables", *(["means"] if self.means else []), *(["unseen_of_table"] if self.initial else [])]
        return [*request, *arrays, *_HASH, *self.rows.arrays]

    def body(self) -> str:
        """Its definition."""
        return _embedding_bags(self) if self.pooled else _embedding_rows(self)


def functions_for(lookups: Iterable[Lookup]) -> list[onnx.FunctionProto]:
    """The functions that a graph with these lookups, and with `SELECT`, needs."""
    texts = [
        _SEGMENTS,
        _CHECK_LENGTHS,
        _LIMIT,
        _SELECT,
        _GROUPS,
        _perfect_hash(),
        *(lookup.body() for lookup in dict.fromkeys(lookups)),
    ]
    return [_parse(text) for text in texts]


@functools.cache
def _parse(text: str) -> onnx.FunctionProto:
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}, "{DOMAIN}" : {VERSION}]>'
    return onnx.parser.parse_function(head + text)


# Which of the segments that begin at `begin`, ascending, each of `total` positions is in. Empty segments have none: of
# several that begin at one position the last one has it.
_SEGMENTS = """
Segments (begin, total) => (segment) {
  zero = Constant <value_int = 0> ()
  start = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  size = Add (total, one)
  nothing = ConstantOfShape <value = int64[1] {0}> (size)
  shape = Shape (begin)
  ones = ConstantOfShape <value = int64[1] {1}> (shape)
  marks = ScatterElements <axis = 0, reduction = "add"> (nothing, begin, ones)
  counts = CumSum (marks, zero)
  inside = Slice (counts, start, total, start)
  segment = Sub (inside, one)
}
"""

# All lengths, and how many ids they come to: what a Reshape of `values` then takes. It refuses lengths that do not sum
# to the number of ids, and negative ones, which make that number one too high.
_CHECK_LENGTHS = """
CheckLengths (values, lengths) => (flat_lengths, expected) {
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  flat_lengths = Reshape (lengths, last)
  sum = ReduceSum <keepdims = 1> (flat_lengths)
  lengths_and_zero = Concat <axis = 0> (flat_lengths, zero)
  least = ReduceMin <keepdims = 1> (lengths_and_zero)
  negative = Less (least, zero)
  ids = Shape (values)
  never = Add (ids, one)
  expected = Where (negative, never, sum)
}
"""

# Makes lengths beyond their key's limit negative, which lookups refuse.
LIMIT = "LimitLengths"
_LIMIT = f"""
{LIMIT} (lengths, limit) => (limited) {{
  refused = Constant <value_int = -1> ()
  beyond = Greater (lengths, limit)
  limited = Where (beyond, refused, lengths)
}}
"""

# Brings the ids of some keys, in that order and as often as they are named, behind one another. Other arrays that go
# with ids are gathered at `position`.
SELECT = "Select"
_SELECT = f"""
{SELECT} (values, lengths, keys) => (selected_values, selected_lengths, position) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  last = Constant <value_ints = [-1]> ()
  second = Constant <value_ints = [1]> ()
  flat_lengths, expected = {DOMAIN}.CheckLengths (values, lengths)
  ids = Reshape <allowzero = 1> (values, expected)
  selected_lengths = Gather <axis = 0> (lengths, keys)
  ids_of_key = ReduceSum <keepdims = 0> (lengths, second)
  source = CumSum <exclusive = 1> (ids_of_key, zero)
  source_of_output = Gather (source, keys)
  ids_of_output = Gather (ids_of_key, keys)
  begin = CumSum <exclusive = 1> (ids_of_output, zero)
  total = ReduceSum <keepdims = 1> (ids_of_output)
  output = {DOMAIN}.Segments (begin, total)
  shift = Sub (source_of_output, begin)
  shift_of_id = Gather (shift, output)
  total_scalar = Squeeze (total)
  sequence = Range (zero, total_scalar, one)
  position = Add (sequence, shift_of_id)
  selected_values = Gather (ids, position)
}}
"""

# Takes the items of bags, `length` of them from `begin` on, `width` at a time: `taken (G, width)` has the number of
# each item and 1 more, group by group, or 0 for none. Each bag has `groups` groups.
_GROUPS = f"""
Groups (begin, length, groups, width) => (taken) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  last = Constant <value_ints = [-1]> ()
  group_begin = CumSum <exclusive = 1> (groups, zero)
  total = ReduceSum <keepdims = 1> (groups)
  bag = {DOMAIN}.Segments (group_begin, total)
  total_scalar = Squeeze (total)
  group = Range (zero, total_scalar, one)
  first_group = Gather (group_begin, bag)
  group_in_bag = Sub (group, first_group)
  items_before = Mul (group_in_bag, width)
  begin_of_bag = Gather (begin, bag)
  length_of_bag = Gather (length, bag)
  first = Add (begin_of_bag, items_before)
  end = Add (begin_of_bag, length_of_bag)
  first_column = Unsqueeze (first, last)
  end_column = Unsqueeze (end, last)
  offsets = Range (zero, width, one)
  item = Add (first_column, offsets)
  inside = Less (item, end_column)
  next = Add (item, one)
  taken = Where (inside, next, zero)
}}
"""


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _perfect_hash() -> str:
    """The row where each id of `table` is, if it is anywhere: the function of csrc/perfect_hash.h."""
    c1, c2, c3, c4 = (_signed(number) for number in _core.PERFECT_HASH_CONSTANTS)
    return f"""
PerfectHash (ids, table, {", ".join(_HASH)}) => (candidate, hit) {{
  half = Constant <value = uint64 {{32}}> ()
  c29 = Constant <value = uint64 {{29}}> ()
  low_bits = Constant <value = int64 {{4294967295}}> ()
  c1 = Constant <value = int64 {{{c1}}}> ()
  c2 = Constant <value = int64 {{{c2}}}> ()
  c3 = Constant <value = int64 {{{c3}}}> ()
  c4 = Constant <value = int64 {{{c4}}}> ()

  u0 = Cast <to = {_UINT64}> (ids)
  u0_high = BitShift <direction = "RIGHT"> (u0, half)
  u1 = BitwiseXor (u0, u0_high)
  i1 = Cast <to = {_INT64}> (u1)
  i2 = Mul (i1, c1)
  u2 = Cast <to = {_UINT64}> (i2)
  u2_high = BitShift <direction = "RIGHT"> (u2, c29)
  u3 = BitwiseXor (u2, u2_high)
  i3 = Cast <to = {_INT64}> (u3)
  i4 = Mul (i3, c2)
  u4 = Cast <to = {_UINT64}> (i4)
  u4_high = BitShift <direction = "RIGHT"> (u4, half)
  mixed = BitwiseXor (u4, u4_high)
  high = Cast <to = {_INT64}> (u4_high)
  hash = Cast <to = {_INT64}> (mixed)
  low = BitwiseAnd (hash, low_bits)

  parts_of_table = Gather (num_parts, table)
  first_part_of_table = Gather (first_part, table)
  scaled_part = Mul (high, parts_of_table)
  scaled_part_u = Cast <to = {_UINT64}> (scaled_part)
  part_u = BitShift <direction = "RIGHT"> (scaled_part_u, half)
  part_in_table = Cast <to = {_INT64}> (part_u)
  part = Add (part_in_table, first_part_of_table)

  buckets_of_part = Gather (num_buckets, part)
  first_bucket_of_part = Gather (first_bucket, part)
  scaled_bucket = Mul (low, buckets_of_part)
  scaled_bucket_u = Cast <to = {_UINT64}> (scaled_bucket)
  bucket_u = BitShift <direction = "RIGHT"> (scaled_bucket_u, half)
  bucket_in_part = Cast <to = {_INT64}> (bucket_u)
  bucket = Add (bucket_in_part, first_bucket_of_part)

  pilot_short = Gather (pilots, bucket)
  pilot = Cast <to = {_INT64}> (pilot_short)
  pilot_mixed = Mul (pilot, c3)
  place = BitwiseXor (hash, pilot_mixed)
  place_mixed = Mul (place, c4)
  place_u = Cast <to = {_UINT64}> (place_mixed)
  place_high_u = BitShift <direction = "RIGHT"> (place_u, half)
  place_high = Cast <to = {_INT64}> (place_high_u)
  rows_of_part = Gather (num_rows, part)
  first_row_of_part = Gather (first_row, part)
  scaled_row = Mul (place_high, rows_of_part)
  scaled_row_u = Cast <to = {_UINT64}> (scaled_row)
  row_u = BitShift <direction = "RIGHT"> (scaled_row_u, half)
  row_in_part = Cast <to = {_INT64}> (row_u)
  candidate = Add (row_in_part, first_row_of_part)

  key = Gather (keys, candidate)
  hit = Equal (key, ids)
}}
"""


def _fetch(index: str, result: str, rows: RowFormat) -> str:
    """Lines that make `result`, float32 ``(..., dim)``, of row numbers `index`."""
    if rows.shards == 1:
        if rows.dtype == "float32":
            return f"{result} = Gather (rows_0, {index})"
        lines = [f"stored = Gather (rows_0, {index})"]
        if rows.dtype == "float16":
            return "\n".join([*lines, f"{result} = Cast <to = {_FLOAT}> (stored)"])
        lines.append(f"plain = Cast <to = {_FLOAT}> (stored)")
    else:
        lines = [
            "shard_zero = Constant <value_int = 0> ()",
            "shard_last = Constant <value_ints = [-1]> ()",
            f"shard_size = Constant <value_int = {rows.shard_rows}> ()",
        ]
        for shard in range(rows.shards):
            # A row of another shard reads this one's first, times 0.
            lines += [
                f"begin_{shard} = Constant <value_int = {shard * rows.shard_rows}> ()",
                f"local_{shard} = Sub ({index}, begin_{shard})",
                f"below_{shard} = Less (local_{shard}, shard_zero)",
                f"beyond_{shard} = GreaterOrEqual (local_{shard}, shard_size)",
                f"elsewhere_{shard} = Or (below_{shard}, beyond_{shard})",
                f"safe_{shard} = Where (elsewhere_{shard}, shard_zero, local_{shard})",
                f"stored_{shard} = Gather (rows_{shard}, safe_{shard})",
                f"float_{shard} = Cast <to = {_FLOAT}> (stored_{shard})",
                f"here_{shard} = Not (elsewhere_{shard})",
                f"mask_{shard} = Cast <to = {_FLOAT}> (here_{shard})",
                f"wide_mask_{shard} = Unsqueeze (mask_{shard}, shard_last)",
                f"part_{shard} = Mul (float_{shard}, wide_mask_{shard})",
            ]
        total = result if rows.dtype != "int8" else "plain"
        lines.append(f"{total} = Sum ({', '.join(f'part_{shard}' for shard in range(rows.shards))})")
        if rows.dtype != "int8":
            return "\n".join(lines)
    return "\n".join(
        [
            *lines,
            "scale_last = Constant <value_ints = [-1]> ()",
            f"scale = Gather (scales, {index})",
            "wide_scale = Unsqueeze (scale, scale_last)",
            f"{result} = Mul (plain, wide_scale)",
        ]
    )


# What begins every lookup.
_BEGIN = f"""
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  zero_1 = Constant <value_ints = [0]> ()
  one_1 = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()

  flat_lengths, expected = {DOMAIN}.CheckLengths (values, lengths)
  ids = Reshape <allowzero = 1> (values, expected)
  ids_of_key = ReduceSum <keepdims = 0> (lengths, one_1)
  begin_of_key = CumSum <exclusive = 1> (ids_of_key, zero)
  key_of_id = {DOMAIN}.Segments (begin_of_key, expected)
  table = Gather (tables, key_of_id)
  candidate, hit = {DOMAIN}.PerfectHash (ids, table, {", ".join(_HASH)})"""


def _row_of_id(lookup: Lookup) -> str:
    unseen = "Gather (unseen_of_table, table)" if lookup.initial else "Identity (zero)"
    return f"""
  unseen = {unseen}
  row = Where (hit, candidate, unseen)"""


def _embedding_rows(lookup: Lookup) -> str:
    """The row of each id: ``values (N,)``, ``lengths (F, B)`` to ``looked_up (N, dim)``."""
    return f"""
{lookup.name} ({", ".join(lookup.inputs)}) => (looked_up) {{{_BEGIN}{_row_of_id(lookup)}
  {_fetch("row", "looked_up", lookup.rows)}
}}
"""


def _embedding_bags(lookup: Lookup) -> str:
    """Pools the bags of each key: ``values (N,)``, ``lengths (F, B)`` to ``pooled (B, F * dim)``.

    Key f's rows are of table `tables[f]`, and pooled as means where `means[f]` is true.

    Bags are padded to the longest one if that at most doubles the work; otherwise rows are summed 4 at a time, and what
    comes of that 4 at a time, until each bag is one row. Each element of a sum is one thread's work, so results do not
    depend on threads, and memory is bounded by the number of ids. A scatter that adds rows would be faster, but threads
    of ONNX Runtime's lose additions.
    """
    weights = """
  checked_weights = Reshape <allowzero = 1> (weights, expected)
  f_zero_1 = Constant <value_floats = [0.0]> ()
  padded_weight = Concat <axis = 0> (f_zero_1, checked_weights)"""
    return f"""
{lookup.name} ({", ".join(lookup.inputs)}) => (pooled) {{{_BEGIN}{_row_of_id(lookup)}
  padded_row = Concat <axis = 0> (zero_1, row){weights if lookup.weighted else ""}
  two_1 = Constant <value_ints = [2]> ()
  four = Constant <value_int = 4> ()
  three = Constant <value_int = 3> ()

  lengths_shape = Shape (lengths)
  flat_begins = CumSum <exclusive = 1> (flat_lengths, zero)
  begins = Reshape <allowzero = 1> (flat_begins, lengths_shape)
  begins_by_bag = Transpose (begins)
  lengths_by_bag = Transpose (lengths)
  begin = Reshape (begins_by_bag, last)
  length = Reshape (lengths_by_bag, last)

  lengths_and_zero = Concat <axis = 0> (flat_lengths, zero_1)
  longest = ReduceMax <keepdims = 0> (lengths_and_zero)
  bags = Size (length)
  padded_size = Mul (longest, bags)
  num_ids = Squeeze (expected)
  twice = Add (num_ids, num_ids)
  at_most_one = LessOrEqual (longest, one)
  even = LessOrEqual (padded_size, twice)
  length_shape = Shape (length)
  bag_sum = If (at_most_one) <
    then_branch = single () => (sum_single) {{
      some = Greater (length, zero)
      next = Add (begin, one)
      taken = Where (some, next, zero)
{_indent(_weighted_sum(lookup, "taken", "sum_single", single=True), 2)}
    }},
    else_branch = several () => (sum_several) {{
      sum_several = If (even) <
        then_branch = padded () => (sum_padded) {{
          one_each = ConstantOfShape <value = int64[1] {{1}}> (length_shape)
          taken = {DOMAIN}.Groups (begin, length, one_each, longest)
{_indent(_weighted_sum(lookup, "taken", "sum_padded"), 6)}
        }},
        else_branch = levels () => (sum_levels) {{
          length_up = Add (length, three)
          groups = Div (length_up, four)
          taken = {DOMAIN}.Groups (begin, length, groups, four)
{_indent(_weighted_sum(lookup, "taken", "sum_first"), 6)}
          sum_shape = Shape (sum_first)
          columns = Slice (sum_shape, one_1, two_1)
          no_row_shape = Concat <axis = 0> (one_1, columns)
          no_row = ConstantOfShape <value = float[1] {{0.0}}> (no_row_shape)
          most = ReduceMax <keepdims = 0> (groups)
          begin_with = Greater (most, one)
          group_sum, group_count = Loop (, begin_with, sum_first, groups) <
            body = level (int64 number, bool go_on, float[g, d] sum_in, int64[b] groups_in)
                => (bool more, float[h, d] sum_out, int64[b] groups_out) {{
              begin_in = CumSum <exclusive = 1> (groups_in, zero)
              groups_up = Add (groups_in, three)
              groups_out = Div (groups_up, four)
              taken_in = {DOMAIN}.Groups (begin_in, groups_in, groups_out, four)
              padded_in = Concat <axis = 0> (no_row, sum_in)
              fours = Gather (padded_in, taken_in)
              sum_out = ReduceSum <keepdims = 0> (fours, one_1)
              most_out = ReduceMax <keepdims = 0> (groups_out)
              more = Greater (most_out, one)
            }}
          >
          group_begin = CumSum <exclusive = 1> (group_count, zero)
          group_next = Add (group_begin, one)
          not_empty = Greater (group_count, zero)
          row_of_bag = Where (not_empty, group_next, zero)
          padded_sum = Concat <axis = 0> (no_row, group_sum)
          sum_levels = Gather (padded_sum, row_of_bag)
        }}
      >
    }}
  >
{_means(lookup)}
  dim = Shape <start = 1> (rows_0)
  keys_1 = Shape <end = 1> (lengths)
  width = Mul (keys_1, dim)
  batch_1 = Shape <start = 1> (lengths)
  pooled_shape = Concat <axis = 0> (batch_1, width)
  pooled = Reshape <allowzero = 1> (pooled_bag, pooled_shape)
}}
"""


def _indent(text: str, by: int = 0) -> str:
    return textwrap.indent(text, " " * (4 + by))


def _weighted_sum(lookup: Lookup, taken: str, result: str, single: bool = False) -> str:
    """Lines that make `result` of the rows at positions `taken`: their sum over the last axis, unless it is `single`.

    Where there are means of weighted rows, the sum of weights is one more column.
    """
    reduce = "Identity ({})" if single else "ReduceSum <keepdims = 0> ({}, one_1)"
    lines = [f"index = Gather (padded_row, {taken})"]
    if not lookup.weighted:
        fetched = result if single else "fetched"
        lines.append(_fetch("index", fetched, lookup.rows))
        if not single:
            lines.append(f"{result} = {reduce.format('fetched')}")
        return "\n".join(lines)
    lines += [
        _fetch("index", "fetched", lookup.rows),
        f"weight = Gather (padded_weight, {taken})",
        "wide_weight = Unsqueeze (weight, last)",
        "weighted = Mul (fetched, wide_weight)",
    ]
    if lookup.means:
        lines += [
            "with_weight = Concat <axis = -1> (weighted, wide_weight)",
            f"{result} = {reduce.format('with_weight')}",
        ]
    else:
        lines.append(f"{result} = {reduce.format('weighted')}")
    return "\n".join(lines)


def _means(lookup: Lookup) -> str:
    """Lines that make `pooled_bag` of `bag_sum`: of an empty bag, or where weights cancel, a mean is 0."""
    if not lookup.means:
        return "  pooled_bag = Identity (bag_sum)"
    if lookup.weighted:
        divisor = """
  minus_one_1 = Constant <value_ints = [-1]> ()
  end_1 = Constant <value_ints = [9223372036854775807]> ()
  sum = Slice (bag_sum, zero_1, minus_one_1, one_1)
  bag_weight = Slice (bag_sum, minus_one_1, end_1, one_1)"""
    else:
        divisor = f"""
  sum = Identity (bag_sum)
  float_length = Cast <to = {_FLOAT}> (length)
  bag_weight = Unsqueeze (float_length, last)"""
    return f"""{divisor}
  f_zero = Constant <value_float = 0.0> ()
  f_one = Constant <value_float = 1.0> ()
  lengths_by_bag_shape = Shape (lengths_by_bag)
  mean_by_bag = Expand (means, lengths_by_bag_shape)
  flat_mean = Reshape (mean_by_bag, last)
  is_mean = Unsqueeze (flat_mean, last)
  cancels = Equal (bag_weight, f_zero)
  safe_weight = Where (cancels, f_one, bag_weight)
  some_divisor = Where (is_mean, safe_weight, f_one)
  none = And (cancels, is_mean)
  quotient = Div (sum, some_divisor)
  pooled_bag = Where (none, f_zero, quotient)"""
