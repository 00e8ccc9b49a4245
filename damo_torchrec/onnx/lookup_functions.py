"""Functions of a graph that look up rows, and pool them."""

import textwrap

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.onnx.jagged_functions import groups, items
from damo_torchrec.onnx.vocabulary import DRAW_ARRAYS, FLOAT, HASH_ARRAYS, INT64, MEAN_ARRAY, Lookup, RowFormat


def _fetch(index: str, result: str, rows: RowFormat) -> str:
    """Lines that make `result`, float32 ``(..., dim)``, of row numbers `index`."""
    unscaled = "plain" if rows.dtype.scaled else result
    lines = _gather(index, unscaled, rows) if rows.shards == 1 else _gather_of_shards(index, unscaled, rows)
    if rows.dtype.scaled:
        lines += [
            "scale_last = Constant <value_ints = [-1]> ()",
            f"scale = Gather (scales, {index})",
            "wide_scale = Unsqueeze (scale, scale_last)",
            f"{result} = Mul ({unscaled}, wide_scale)",
        ]
    return "\n".join(lines)


def _gather(index: str, result: str, rows: RowFormat) -> list[str]:
    if rows.dtype.onnx_type == FLOAT:
        return [f"{result} = Gather (rows_0, {index})"]
    return [f"stored = Gather (rows_0, {index})", f"{result} = Cast <to = {FLOAT}> (stored)"]


def _gather_of_shards(index: str, result: str, rows: RowFormat) -> list[str]:
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
            f"float_{shard} = Cast <to = {FLOAT}> (stored_{shard})",
            f"here_{shard} = Not (elsewhere_{shard})",
            f"mask_{shard} = Cast <to = {FLOAT}> (here_{shard})",
            f"wide_mask_{shard} = Unsqueeze (mask_{shard}, shard_last)",
            f"part_{shard} = Mul (float_{shard}, wide_mask_{shard})",
        ]
    return [*lines, f"{result} = Sum ({', '.join(f'part_{shard}' for shard in range(rows.shards))})"]


# By key, with table 0 before them: what runtimes compute once, as they load. Table 0 has no ids but the one that goes
# before a request's, so that number 0 of all that is by id stands for none.
_BY_KEY = [f"{array}_by_key" for array in HASH_ARRAYS[:2]]
_KEYS = f"""
  num_keys_1 = Shape (tables)
  num_keys = Squeeze (num_keys_1)
  beyond_keys = Add (num_keys, one)
  key = Range (zero, beyond_keys, one)
  key_shape = Shape (key)
  mark = ConstantOfShape <value = int64[1] {{1}}> (key_shape)
  table_by_key = Concat <axis = 0> (zero_1, tables)
  {_BY_KEY[0]} = GatherElements ({HASH_ARRAYS[0]}, table_by_key)
  {_BY_KEY[1]} = GatherElements ({HASH_ARRAYS[1]}, table_by_key)
"""

# What begins every lookup. Each key's mark is where its ids end: an id's key is the number of marks before it.
_BEGIN = f"""
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  zero_1 = Constant <value_ints = [0]> ()
  one_1 = Constant <value_ints = [1]> ()
  last = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
{_KEYS}
  flat_lengths, longest, offsets, ids = {DOMAIN}.CheckLengths (values, lengths)
  padded_ids = Concat <axis = 0> (zero_1, ids)
  padded_size = Shape (padded_ids)
  batch = Shape <start = 1> (lengths)
  bag_after_key = Mul (key, batch)
  end_of_key = GatherElements (offsets, bag_after_key)
  no_mark = ConstantOfShape <value = int64[1] {{0}}> (padded_size)
  marks = ScatterElements <axis = 0, reduction = "add"> (no_mark, end_of_key, mark)
  key_of_id = CumSum <exclusive = 1> (marks, zero)
  candidate, hit = {DOMAIN}.PerfectHash (padded_ids, key_of_id, {", ".join([*_BY_KEY, *HASH_ARRAYS[2:]])})
  one_for_hit = Cast <to = {INT64}> (hit)
  row = Mul (candidate, one_for_hit)"""


def _fills(lookup: Lookup) -> str:
    """Lines that make `fills`, rows for ids that have none, and the number `fill` in it of each such id; else 0."""
    missing = """
  miss = Equal (row, zero)"""
    if not lookup.initial:  # one for each table, of which 0 is of no id
        return f"""{missing}
  one_for_miss = Cast <to = {INT64}> (miss)
  table_of_id = GatherElements (table_by_key, key_of_id)
  fill = Mul (table_of_id, one_for_miss)
  fills = Identity ({MEAN_ARRAY})"""
    drawn = f"{DOMAIN}.InitialRows{lookup.rows.dim} (unseen_id, unseen_table, {', '.join(DRAW_ARRAYS)})"
    filled = "unseen_rows = Identity (drawn)"
    if lookup.mean_rows:  # tables that have the one have zeros for the other
        filled = f"""unseen_mean = Gather ({MEAN_ARRAY}, unseen_table)
  unseen_rows = Add (drawn, unseen_mean)"""
    return f"""{missing}
  is_id = Greater (key_of_id, zero)
  unseen = And (miss, is_id)
  unseen_position = NonZero (unseen)
  unseen_at = Reshape (unseen_position, last)
  unseen_id = GatherElements (padded_ids, unseen_at)
  unseen_key = GatherElements (key_of_id, unseen_at)
  unseen_table = GatherElements (table_by_key, unseen_key)
  drawn = {drawn}
  {filled}
  no_fill = Constant <value = float[1, {lookup.rows.dim}] {{{", ".join(["0.0"] * lookup.rows.dim)}}}> ()
  fills = Concat <axis = 0> (no_fill, unseen_rows)
  one_for_unseen = Cast <to = {INT64}> (unseen)
  rank = CumSum (one_for_unseen, zero)
  fill = Mul (rank, one_for_unseen)"""


def _fetch_or_fill(lookup: Lookup, index: str, fill: str, result: str) -> str:
    """Lines that make `result` of row numbers `index` and, for ids without one, numbers `fill` of `fills`."""
    if not lookup.fills:
        return _fetch(index, result, lookup.rows)
    lines = [
        _fetch(index, "stored_rows", lookup.rows),
        f"filled_rows = Gather (fills, {fill})",
        f"{result} = Add (stored_rows, filled_rows)",
    ]
    return "\n".join(lines)


def embedding_rows(lookup: Lookup) -> str:
    """The row of each id: ``values (N,)``, ``lengths (F, B)`` to ``looked_up (N, dim)``."""
    fills = f"{_fills(lookup)}\n  fill_of_id = Slice (fill, one_1, end)" if lookup.fills else ""
    return f"""
{lookup.name} ({", ".join(lookup.inputs)}) => (looked_up) {{{_BEGIN}{fills}
  row_of_id = Slice (row, one_1, end)
  {_fetch_or_fill(lookup, "row_of_id", "fill_of_id", "looked_up")}
}}
"""


def embedding_bags(lookup: Lookup) -> str:
    """Pools the bags of each key: ``values (N,)``, ``lengths (F, B)`` to ``pooled (B, F * dim)``.

    Key f's rows are of table `tables[f]`, and pooled as means where `means[f]` is true.

    Bags are padded to the longest one if that at most doubles the work; otherwise rows are summed 4 at a time, and what
    comes of that 4 at a time, until each bag is one row: memory is bounded by the number of ids. Rows are summed by
    products of matrices, in which an element is one thread's work: ONNX Runtime's ReduceSum adds in another order where
    there are fewer sums than threads, and its scatter that adds loses additions.
    """
    by_id = (_fills(lookup) if lookup.fills else "") + (_WEIGHTS if lookup.weighted else "")
    return f"""
{lookup.name} ({", ".join(lookup.inputs)}) => (pooled) {{{_BEGIN}{by_id}
  two_1 = Constant <value_ints = [2]> ()
  four = Constant <value_int = 4> ()
  three = Constant <value_int = 3> ()

  by_key = Concat <axis = 0> (num_keys_1, last)
  at_most_one = LessOrEqual (longest, one)
  bag_sum = If (at_most_one) <
    then_branch = single () => (sum_single) {{
{textwrap.indent(_sum_of_single(lookup), " " * 6)}
    }},
    else_branch = several () => (sum_several) {{
{textwrap.indent(_sum_of_several(lookup), " " * 6)}
    }}
  >
{_means(lookup)}
  dim = Shape <start = 1> (rows_0)
  width = Mul (num_keys_1, dim)
  pooled_shape = Concat <axis = 0> (last, width)
  pooled = Reshape (pooled_bag, pooled_shape)
}}
"""


# The weights of ids.
_WEIGHTS = """
  num_ids = Shape (ids)
  checked_weights = Reshape <allowzero = 1> (weights, num_ids)
  f_zero_1 = Constant <value_floats = [0.0]> ()
  padded_weight = Concat <axis = 0> (f_zero_1, checked_weights)"""


def _sum_of_single(lookup: Lookup) -> str:
    """Lines that make `sum_single`, where no bag has more than one id."""
    return f"""\
flat_ends = Slice (offsets, one_1, end)
end_or_zero = Mul (flat_lengths, flat_ends)
taken_by_key = Reshape (end_or_zero, by_key)
taken_by_bag = Transpose (taken_by_key)
taken = Reshape (taken_by_bag, last)
{_single(lookup, "taken", "sum_single")}"""


def _sum_of_several(lookup: Lookup) -> str:
    """Lines that make `sum_several`: of padded bags, or level by level."""
    return f"""\
flat_begins = Slice (offsets, zero_1, last)
begins = Reshape (flat_begins, by_key)
begin_by_bag = Transpose (begins)
length_by_bag = Transpose (lengths)
padded_bags = Shape (offsets)
work = Mul (longest, padded_bags)
twice = Add (padded_size, padded_size)
even = LessOrEqual (work, twice)
sum_several = If (even) <
  then_branch = padded () => (sum_padded) {{
    longest_1 = Reshape (longest, last)
    ones = ConstantOfShape <value = float[1] {{1.0}}> (longest_1)
{textwrap.indent(items("begin_by_bag", "length_by_bag", "longest", "taken", "padded_"), "  ")}
{textwrap.indent(_sum(lookup, "taken", "sum_padded"), " " * 4)}
  }},
  else_branch = levels () => (sum_levels) {{
{textwrap.indent(_sum_by_levels(lookup), " " * 4)}
  }}
>"""


def _sum_by_levels(lookup: Lookup) -> str:
    """Lines that make `sum_levels`: sums of 4 rows, then of 4 such sums, until each bag has one."""
    return f"""\
begin = Reshape (begin_by_bag, last)
length = Reshape (length_by_bag, last)
length_up = Add (length, three)
groups = Div (length_up, four)
ones = Constant <value_floats = [1.0, 1.0, 1.0, 1.0]> ()
{groups("begin", "length", "groups", "four", "taken", "first_")}
{_sum(lookup, "taken", "sum_first")}
{_LATER_LEVELS}"""


_LATER_LEVELS = f"""\
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
{groups("begin_in", "groups_in", "groups_out", "four", "taken_in", "later_")}
    padded_in = Concat <axis = 0> (no_row, sum_in)
    fours = Gather (padded_in, taken_in)
    sum_out = MatMul (ones, fours)
    most_out = ReduceMax <keepdims = 0> (groups_out)
    more = Greater (most_out, one)
  }}
>
group_begin = CumSum <exclusive = 1> (group_count, zero)
group_next = Add (group_begin, one)
not_empty = Greater (group_count, zero)
row_of_bag = Where (not_empty, group_next, zero)
padded_sum = Concat <axis = 0> (no_row, group_sum)
sum_levels = Gather (padded_sum, row_of_bag)"""


def _single(lookup: Lookup, taken: str, result: str) -> str:
    """Lines that make `result` of the row of each bag, which is at position `taken`, as `_sum` does of its rows."""
    lines = _fetched(lookup, taken, "fetched" if lookup.weighted else result, single=True)
    if not lookup.weighted:
        return "\n".join(lines)
    weighted = "weighted" if lookup.means else result
    lines += ["weight_column = Unsqueeze (weight, last)", f"{weighted} = Mul (fetched, weight_column)"]
    if lookup.means:
        lines.append(f"{result} = Concat <axis = -1> (weighted, weight_column)")
    return "\n".join(lines)


def _sum(lookup: Lookup, taken: str, result: str) -> str:
    """Lines that make `result` of the rows of each bag, which are at positions `taken`, ``(bags, n)``: their sum.

    Where there are means of weighted rows, the sum of weights is one more column. `ones` are n of them.
    """
    lines = _fetched(lookup, taken, "fetched", single=False)
    if not lookup.weighted:
        return "\n".join([*lines, f"{result} = MatMul (ones, fetched)"])
    weighted = "weighted" if lookup.means else result
    lines += [
        "weight_row = Unsqueeze (weight, one_1)",
        "product = MatMul (weight_row, fetched)",
        f"{weighted} = Squeeze (product, one_1)",
    ]
    if lookup.means:
        lines += ["total_weight = MatMul (weight_row, ones)", f"{result} = Concat <axis = -1> (weighted, total_weight)"]
    return "\n".join(lines)


def _fetched(lookup: Lookup, taken: str, result: str, single: bool) -> list[str]:
    """Lines that make `result` of the rows at positions `taken`, and their `weight`."""
    lines = _take(taken, "row", "index", single)
    if lookup.fills:
        lines += _take(taken, "fill", "fill_index", single)
    lines.append(_fetch_or_fill(lookup, "index", "fill_index", result))
    if lookup.weighted:
        lines += _take(taken, "padded_weight", "weight", single)
    return lines


def _take(taken: str, source: str, result: str, single: bool) -> list[str]:
    """Lines that make `result` of the items of `source` at `taken`, which has one dimension if `single`, else two."""
    if single:
        return [f"{result} = GatherElements ({source}, {taken})"]
    return [
        f"{result}_at = Reshape ({taken}, last)",
        f"{result}_flat = GatherElements ({source}, {result}_at)",
        f"{result}_shape = Shape ({taken})",
        f"{result} = Reshape <allowzero = 1> ({result}_flat, {result}_shape)",
    ]


def _means(lookup: Lookup) -> str:
    """Lines that make `pooled_bag` of `bag_sum`: of an empty bag, or where weights cancel, a mean is 0."""
    if not lookup.means:
        return "  pooled_bag = Identity (bag_sum)"
    if lookup.weighted:
        divisor = """
  sum = Slice (bag_sum, zero_1, last, one_1)
  bag_weight = Slice (bag_sum, last, end, one_1)"""
    else:
        divisor = f"""
  sum = Identity (bag_sum)
  lengths_by_bag = Transpose (lengths)
  length_column = Reshape (lengths_by_bag, column)
  bag_weight = Cast <to = {FLOAT}> (length_column)"""
    return f"""  column = Constant <value_ints = [-1, 1]> (){divisor}
  f_zero = Constant <value_float = 0.0> ()
  f_one = Constant <value_float = 1.0> ()
  batch_and_keys = Concat <axis = 0> (batch, num_keys_1)
  means_of_bag = Expand (means, batch_and_keys)
  is_mean = Reshape (means_of_bag, column)
  cancels = Equal (bag_weight, f_zero)
  safe_weight = Where (cancels, f_one, bag_weight)
  some_divisor = Where (is_mean, safe_weight, f_one)
  none = And (cancels, is_mean)
  quotient = Div (sum, some_divisor)
  pooled_bag = Where (none, f_zero, quotient)"""
