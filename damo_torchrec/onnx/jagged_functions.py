"""Functions of a graph that work on bags of ids: ``values (N,)`` and ``lengths (F, B)``."""

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.onnx.vocabulary import INT64


def segments(later: str, total: str, segment: str, prefix: str = "") -> str:
    """Lines that make `segment`: of which segment each of `total` positions is.

    The first one begins at 0 and the others at `later`, ascending. Empty segments have no position: of several that
    begin at one the last one has it.

    Lines, here and below, are for branches and loops, where names of their own begin with `prefix`. A function is no
    use there: ONNX Runtime names what is in it alike in a branch and in a loop of that branch, so that a graph that it
    has optimized and saved cannot be loaded.
    """
    return f"""
  {prefix}zero = Constant <value_int = 0> ()
  {prefix}start = Constant <value_ints = [0]> ()
  {prefix}step = Constant <value_ints = [1]> ()
  {prefix}size = Add ({total}, {prefix}step)
  {prefix}nothing = ConstantOfShape <value = int64[1] {{0}}> ({prefix}size)
  {prefix}shape = Shape ({later})
  {prefix}ones = ConstantOfShape <value = int64[1] {{1}}> ({prefix}shape)
  {prefix}marks = ScatterElements <axis = 0, reduction = "add"> ({prefix}nothing, {later}, {prefix}ones)
  {prefix}begun = CumSum ({prefix}marks, {prefix}zero)
  {segment} = Slice ({prefix}begun, {prefix}start, {total}, {prefix}start)"""


SEGMENTS = f"""
Segments (later, total) => (segment) {{{segments("later", "total", "segment")}
}}
"""

# All lengths; the longest; where each bag's ids begin, and where the last bag's end; and the ids. It refuses lengths
# that do not sum to the number of ids, by way of a Split into one piece of so many. If one length is negative, or the
# sum wraps, they come to a negative number, which no piece has: of numbers that are not negative, a sum that wraps has
# been negative.
CHECK_LENGTHS = """
CheckLengths (values, lengths) => (flat_lengths, longest, offsets, ids) {
  axis = Constant <value_int = 0> ()
  zero = Constant <value_ints = [0]> ()
  last = Constant <value_ints = [-1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  flat_lengths = Reshape (lengths, last)
  zero_and_lengths = Concat <axis = 0> (zero, flat_lengths)
  longest = ReduceMax <keepdims = 0> (zero_and_lengths)
  offsets = CumSum (zero_and_lengths, axis)
  sum = Slice (offsets, last, end)
  lengths_and_offsets = Concat <axis = 0> (flat_lengths, offsets)
  zero_or_negative = ReduceMin <keepdims = 1> (lengths_and_offsets)
  expected = BitwiseOr (sum, zero_or_negative)
  ids = Split (values, expected)
}
"""

# A jagged tensor as it is, once it is checked: for what would make something as large as lengths say.
CHECK = "CheckJagged"
CHECK_JAGGED = f"""
{CHECK} (values, lengths) => (ids, checked_lengths) {{
  flat_lengths, longest, offsets, ids = {DOMAIN}.CheckLengths (values, lengths)
  num_ids = Shape (ids)
  nothing = Sub (num_ids, num_ids)
  checked_lengths = Add (lengths, nothing)
}}
"""

# Makes lengths beyond their key's limit negative, which lookups refuse.
LIMIT = "LimitLengths"
LIMIT_LENGTHS = f"""
{LIMIT} (lengths, limit) => (limited) {{
  refused = Constant <value_int = -1> ()
  beyond = Greater (lengths, limit)
  limited = Where (beyond, refused, lengths)
}}
"""

# Brings the ids of some keys, in that order and as often as they are named, behind one another. Other arrays that go
# with ids are gathered at `position`.
SELECT = "Select"
SELECT_KEYS = f"""
{SELECT} (values, lengths, keys) => (selected_values, selected_lengths, position) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  last = Constant <value_ints = [-1]> ()
  second = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  ids, checked_lengths = {DOMAIN}.{CHECK} (values, lengths)
  selected_lengths = Gather <axis = 0> (checked_lengths, keys)
  ids_of_key = ReduceSum <keepdims = 0> (checked_lengths, second)
  source = CumSum <exclusive = 1> (ids_of_key, zero)
  source_of_output = GatherElements (source, keys)
  ids_of_output = GatherElements (ids_of_key, keys)
  begin = CumSum <exclusive = 1> (ids_of_output, zero)
  total = ReduceSum <keepdims = 1> (ids_of_output)
  later = Slice (begin, second, end)
  output = {DOMAIN}.Segments (later, total)
  shift = Sub (source_of_output, begin)
  shift_of_id = GatherElements (shift, output)
  total_scalar = Squeeze (total)
  sequence = Range (zero, total_scalar, one)
  position = Add (sequence, shift_of_id)
  selected_values = GatherElements (ids, position)
}}
"""


def items(begin: str, length: str, width: str, taken: str, prefix: str) -> str:
    """Lines that make `taken (G, width)`: from each `begin` on `length` items, at most `width` of them.

    It has the number of each item and 1 more, or 0 for none.
    """
    return f"""
  {prefix}one = Constant <value_int = 1> ()
  {prefix}column = Constant <value_ints = [-1, 1]> ()
  {prefix}begin_column = Reshape ({begin}, {prefix}column)
  {prefix}length_column = Reshape ({length}, {prefix}column)
  {prefix}beyond = Add ({width}, {prefix}one)
  {prefix}steps = Range ({prefix}one, {prefix}beyond, {prefix}one)
  {prefix}next = Add ({prefix}begin_column, {prefix}steps)
  {prefix}inside = LessOrEqual ({prefix}steps, {prefix}length_column)
  {prefix}one_for_inside = Cast <to = {INT64}> ({prefix}inside)
  {taken} = Mul ({prefix}next, {prefix}one_for_inside)"""


def groups(begin: str, length: str, per_bag: str, width: str, taken: str, prefix: str) -> str:
    """Lines that make `taken`, as `items` does: `length` items of bags, from `begin` on, `width` at a time.

    Each bag has as many groups as `per_bag` says.
    """
    bags = segments(f"{prefix}later", f"{prefix}total", f"{prefix}bag", f"{prefix}segment_")
    own = items(f"{prefix}begin_of_group", f"{prefix}length_left", width, taken, f"{prefix}item_")
    return f"""
  {prefix}zero = Constant <value_int = 0> ()
  {prefix}one = Constant <value_int = 1> ()
  {prefix}second = Constant <value_ints = [1]> ()
  {prefix}end = Constant <value_ints = [9223372036854775807]> ()
  {prefix}group_begin = CumSum <exclusive = 1> ({per_bag}, {prefix}zero)
  {prefix}total = ReduceSum <keepdims = 1> ({per_bag})
  {prefix}later = Slice ({prefix}group_begin, {prefix}second, {prefix}end)
  {bags}
  {prefix}total_scalar = Squeeze ({prefix}total)
  {prefix}group = Range ({prefix}zero, {prefix}total_scalar, {prefix}one)
  {prefix}first_group = GatherElements ({prefix}group_begin, {prefix}bag)
  {prefix}group_in_bag = Sub ({prefix}group, {prefix}first_group)
  {prefix}items_before = Mul ({prefix}group_in_bag, {width})
  {prefix}begin_of_bag = GatherElements ({begin}, {prefix}bag)
  {prefix}length_of_bag = GatherElements ({length}, {prefix}bag)
  {prefix}begin_of_group = Add ({prefix}begin_of_bag, {prefix}items_before)
  {prefix}length_left = Sub ({prefix}length_of_bag, {prefix}items_before)
  {own}"""
