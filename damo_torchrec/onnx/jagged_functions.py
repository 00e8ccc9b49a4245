"""Functions of a graph that work on bags of ids: ``values (N,)`` and ``lengths (F, B)``."""

from damo_torchrec.onnx.vocabulary import DOMAIN

# Which of the segments that begin at `begin`, ascending, each of `total` positions is in. Empty segments have none: of
# several that begin at one position the last one has it.
SEGMENTS = """
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
CHECK_LENGTHS = """
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
  flat_lengths, expected = {DOMAIN}.CheckLengths (values, lengths)
  ids = Reshape <allowzero = 1> (values, expected)
  selected_lengths = Gather <axis = 0> (lengths, keys)
  ids_of_key = ReduceSum <keepdims = 0> (lengths, second)
  source = CumSum <exclusive = 1> (ids_of_key, zero)
  source_of_output = GatherElements (source, keys)
  ids_of_output = GatherElements (ids_of_key, keys)
  begin = CumSum <exclusive = 1> (ids_of_output, zero)
  total = ReduceSum <keepdims = 1> (ids_of_output)
  output = {DOMAIN}.Segments (begin, total)
  shift = Sub (source_of_output, begin)
  shift_of_id = GatherElements (shift, output)
  total_scalar = Squeeze (total)
  sequence = Range (zero, total_scalar, one)
  position = Add (sequence, shift_of_id)
  selected_values = GatherElements (ids, position)
}}
"""

# Takes the items of bags, `length` of them from `begin` on, `width` at a time: `taken (G, width)` has the number of
# each item and 1 more, group by group, or 0 for none. Each bag has `groups` groups.
GROUPS = f"""
Groups (begin, length, groups, width) => (taken) {{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  last = Constant <value_ints = [-1]> ()
  group_begin = CumSum <exclusive = 1> (groups, zero)
  total = ReduceSum <keepdims = 1> (groups)
  bag = {DOMAIN}.Segments (group_begin, total)
  total_scalar = Squeeze (total)
  group = Range (zero, total_scalar, one)
  first_group = GatherElements (group_begin, bag)
  group_in_bag = Sub (group, first_group)
  items_before = Mul (group_in_bag, width)
  begin_of_bag = GatherElements (begin, bag)
  length_of_bag = GatherElements (length, bag)
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
