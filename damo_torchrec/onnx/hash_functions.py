"""Functions of a graph that find an id's row, or draw the one that it would begin with.

Where arrays have one dimension GatherElements does what Gather does, and ONNX Runtime does it several times as fast.
"""

from damo_torchrec import _core
from damo_torchrec.onnx.vocabulary import DOUBLE, DRAW_ARRAYS, FLOAT, HASH_ARRAYS, INT64, UINT64


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def perfect_hash() -> str:
    """The row where each id is, if it is anywhere: the function of csrc/serving/perfect_hash.h.

    Each id's `table` is a number in `first_bucket` and `bucket_mask`.
    """
    c1, c2, c3 = (_signed(number) for number in _core.PERFECT_HASH_CONSTANTS)
    return f"""
PerfectHash (ids, table, {", ".join(HASH_ARRAYS)}) => (candidate, hit) {{
  c32 = Constant <value = uint64 {{32}}> ()
  c29 = Constant <value = uint64 {{29}}> ()
  c1 = Constant <value = int64 {{{c1}}}> ()
  c2 = Constant <value = int64 {{{c2}}}> ()
  c3 = Constant <value = int64 {{{c3}}}> ()
  part_bits = Constant <value = int64 {{{(1 << _core.PERFECT_HASH_PART_BITS) - 1}}}> ()

  u0 = Cast <to = {UINT64}> (ids)
  u0_high = BitShift <direction = "RIGHT"> (u0, c32)
  u1 = BitwiseXor (u0, u0_high)
  i1 = Cast <to = {INT64}> (u1)
  i2 = Mul (i1, c1)
  u2 = Cast <to = {UINT64}> (i2)
  u2_high = BitShift <direction = "RIGHT"> (u2, c29)
  u3 = BitwiseXor (u2, u2_high)
  i3 = Cast <to = {INT64}> (u3)
  hash = Mul (i3, c2)

  mask = GatherElements (bucket_mask, table)
  bucket_in_table = BitwiseAnd (hash, mask)
  first_bucket_of_table = GatherElements (first_bucket, table)
  bucket_at = Add (bucket_in_table, first_bucket_of_table)
  bucket = GatherElements (buckets, bucket_at)

  mixed = BitwiseXor (hash, bucket)
  place = Mul (mixed, c3)
  part = BitwiseAnd (bucket, part_bits)
  middle_row_of_part = GatherElements (middle_row, part)
  scale = GatherElements (row_scale, part)
  place_number = Cast <to = {DOUBLE}> (place)
  from_middle_number = Mul (place_number, scale)
  from_middle = Cast <to = {INT64}> (from_middle_number)
  candidate = Add (from_middle, middle_row_of_part)

  key = GatherElements (keys, candidate)
  hit = Equal (key, ids)
}}
"""


# Philox4x32-10's multipliers and what its key grows by (csrc/row/philox.h).
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def initial_rows(dim: int) -> str:
    """Draws ``(N, dim)`` initial rows of ids: the function of csrc/row/initializer.h, for uniform and constant values.

    Words of 32 bits are in int64s. Their products are of 64 bits, and of those the high words are taken unsigned.
    """
    blocks = (dim + 3) // 4
    rounds = "".join(_philox_round(number) for number in range(10))
    return f"""
InitialRows{dim} (ids, table, {", ".join(DRAW_ARRAYS)}) => (rows) {{
  half = Constant <value = uint64 {{32}}> ()
  word = Constant <value = int64 {{4294967295}}> ()
  m0 = Constant <value = int64 {{{_MULTIPLIERS[0]}}}> ()
  m1 = Constant <value = int64 {{{_MULTIPLIERS[1]}}}> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  last = Constant <value_ints = [-1]> ()
  blocks = Constant <value_int = {blocks}> ()

  block = Range (zero, blocks, one)
  id = Unsqueeze (ids, last)
  id_u = Cast <to = {UINT64}> (id)
  id_high_u = BitShift <direction = "RIGHT"> (id_u, half)
  id_high = Cast <to = {INT64}> (id_high_u)
  id_low = BitwiseAnd (id, word)
  nothing = Mul (id, zero)
  a0 = Add (nothing, block)
  b0 = Sub (a0, a0)
  c0 = Add (b0, id_low)
  d0 = Add (b0, id_high)
  key_low = GatherElements (stream_low, table)
  key_high = GatherElements (stream_high, table)
  k0 = Unsqueeze (key_low, last)
  l0 = Unsqueeze (key_high, last)
{rounds}
  a_wide = Unsqueeze (a10, last)
  b_wide = Unsqueeze (b10, last)
  c_wide = Unsqueeze (c10, last)
  d_wide = Unsqueeze (d10, last)
  words = Concat <axis = -1> (a_wide, b_wide, c_wide, d_wide)
  flat_shape = Constant <value_ints = [-1, {4 * blocks}]> ()
  flat = Reshape (words, flat_shape)
  begin = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [{dim}]> ()
  second = Constant <value_ints = [1]> ()
  bits = Slice (flat, begin, end, second)
  bits_u = Cast <to = {UINT64}> (bits)
  eight = Constant <value = uint64 {{8}}> ()
  top_u = BitShift <direction = "RIGHT"> (bits_u, eight)
  top = Cast <to = {INT64}> (top_u)
  numerator = Cast <to = {FLOAT}> (top)
  unit = Constant <value = float {{{2.0**-24!r}}}> ()
  fraction = Mul (numerator, unit)
  range_of_id = GatherElements (draw_range, table)
  low_of_id = GatherElements (draw_low, table)
  range_column = Unsqueeze (range_of_id, last)
  low_column = Unsqueeze (low_of_id, last)
  above = Mul (fraction, range_column)
  rows = Add (low_column, above)
}}
"""


def _philox_round(i: int) -> str:
    """Counter words a, b, c, d and key words k, l after round i."""
    steps = (
        ""
        if i == 9
        else f"""
  ks{i} = Constant <value = int64 {{{_KEY_STEPS[0]}}}> ()
  ls{i} = Constant <value = int64 {{{_KEY_STEPS[1]}}}> ()
  ka{i} = Add (k{i}, ks{i})
  la{i} = Add (l{i}, ls{i})
  k{i + 1} = BitwiseAnd (ka{i}, word)
  l{i + 1} = BitwiseAnd (la{i}, word)"""
    )
    return f"""
  p{i} = Mul (m0, a{i})
  q{i} = Mul (m1, c{i})
  pu{i} = Cast <to = {UINT64}> (p{i})
  qu{i} = Cast <to = {UINT64}> (q{i})
  ph{i} = BitShift <direction = "RIGHT"> (pu{i}, half)
  qh{i} = BitShift <direction = "RIGHT"> (qu{i}, half)
  pi{i} = Cast <to = {INT64}> (ph{i})
  qi{i} = Cast <to = {INT64}> (qh{i})
  ax{i} = BitwiseXor (qi{i}, b{i})
  cx{i} = BitwiseXor (pi{i}, d{i})
  a{i + 1} = BitwiseXor (ax{i}, k{i})
  c{i + 1} = BitwiseXor (cx{i}, l{i})
  b{i + 1} = BitwiseAnd (q{i}, word)
  d{i + 1} = BitwiseAnd (p{i}, word){steps}"""
