"""Functions of a graph that work on bags of ids: ``values (N,)`` and ``lengths (F, B)``."""

from damo_torchrec.graph_check import DOMAIN
from damo_torchrec.onnx.vocabulary import INT64

# Which of the segments, of which the first begins at 0 and the others at `later`, ascending, each of `total` positions
# is in. Empty segments have none: of several that begin at one position the last one has it.
SEGMENTS = """
Segments (later, total) => (segment) {
  zero = Constant <value_int = 0> ()
  start = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  size = Add (total, one)
  nothing = ConstantOfShape <value = int64[1] {0}> (size)
  shape = Shape (later)
  ones = ConstantOfShape <value = int64[1] {1}> (shape)
  marks = ScatterElements <axis = 0, reduction = "add"> (nothing, later, ones)
  begun = CumSum (marks, zero)
  segment = Slice (begun, start, total, start)
}
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

# From each `begin` on `length` items, at most `width` of them: `taken (G, width)` has the number of each item and 1
# more, or 0 for none.
ITEMS = f"""
Items (begin, length, width) => (taken) {{
  one = Constant <value_int = 1> ()
  column = Constant <value_ints = [-1, 1]> ()
  begin_column = Reshape (begin, column)
  length_column = Reshape (length, column)
  beyond = Add (width, one)
  steps = Range (one, beyond, one)
  next = Add (begin_column, steps)
  inside = LessOrEqual (steps, length_column)
  one_for_inside = Cast <to = {INT64}> (inside)
  taken = Mul (next, one_for_inside)
}}
"""

# Takes the items of bags, `length` of them from `begin` on, `width` at a time, group by group, as `Items` does. Each
# bag has `groups` groups.
GROUPS = f"""
Groups (begin, length, groups, width) => (taken) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  one_1 = Constant <value_ints = [1]> ()
  end = Constant <value_ints = [9223372036854775807]> ()
  group_begin = CumSum <exclusive = 1> (groups, zero)
  total = ReduceSum <keepdims = 1> (groups)
  later = Slice (group_begin, one_1, end)
  bag = {DOMAIN}.Segments (later, total)
  total_scalar = Squeeze (total)
  group = Range (zero, total_scalar, one)
  first_group = GatherElements (group_begin, bag)
  group_in_bag = Sub (group, first_group)
  items_before = Mul (group_in_bag, width)
  begin_of_bag = GatherElements (begin, bag)
  length_of_bag = GatherElements (length, bag)
  begin_of_group = Add (begin_of_bag, items_before)
  length_left = Sub (length_of_bag, items_before)
  taken = {DOMAIN}.Items (begin_of_group, length_left, width)
}}
"""
