"""Which rows are dead, against what csrc/row/ladder.h says, one row at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damo_torchrec.checkpoints.ladder import CLASSES, END, Ladder, id_parts, position

STEP = st.integers(0, 2**32 - 1) | st.integers(0, 4)
POSITIONS = st.builds(position, STEP, st.integers(0, 255) | st.just(0))
LADDERS = st.builds(Ladder, st.lists(POSITIONS, min_size=CLASSES, max_size=CLASSES).map(tuple))
ROWS = st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), STEP, STEP | st.just(0)), max_size=30)


def part_of(i: int) -> int:
    value = i % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return (value ^ value >> 31) >> 56


def is_dead(ladder: Ladder, i: int, last_step: int, count: int) -> bool:
    step, part = divmod(ladder.positions[count.bit_length()], 256)
    return last_step < step or (last_step == step and part_of(i) < part)


def dead(ladder: Ladder, rows: list[tuple[int, int, int]]) -> list[bool]:
    headers = np.array([row[1:] for row in rows], dtype=np.uint32).reshape(-1, 2)
    found: list[bool] = ladder.dead(headers, np.array([row[0] for row in rows], dtype=np.int64)).tolist()
    return found


@given(LADDERS, ROWS)
def test_it_is_the_rule_of_the_engine(ladder: Ladder, rows: list[tuple[int, int, int]]) -> None:
    rows += [(i, ladder.positions[count.bit_length()] // 256, count) for i, _, count in rows]  # on the rungs
    assert dead(ladder, rows) == [is_dead(ladder, *row) for row in rows]


@given(LADDERS, LADDERS, ROWS)
def test_a_ladder_over_two_is_the_lowest_that_has_what_is_dead_by_either(
    one: Ladder, other: Ladder, rows: list[tuple[int, int, int]]
) -> None:
    rungs = [(ladder, count.bit_length()) for _, _, count in rows for ladder in (one, other)]
    rows += [(i, ladder.positions[c] // 256, 2**c // 2) for i, _, _ in rows[:3] for ladder, c in rungs]
    over = one.over(other)
    assert dead(over, rows) == [is_dead(one, *row) or is_dead(other, *row) for row in rows]
    assert one.is_above(other) == (over != other)
    assert not one.is_above(over)


def test_every_count_has_its_class() -> None:
    counts = [count for k in range(33) for count in (2**k - 1, 2**k) if count < 2**32]
    ladder = Ladder.of_steps(range(100, 100 + CLASSES))
    for below in (0, 1):
        rows = [(0, 100 + count.bit_length() - below, count) for count in counts]
        assert dead(ladder, rows) == [below == 1] * len(rows)


def test_parts_are_those_of_the_engine() -> None:
    ids = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert id_parts(np.array(ids)).tolist() == [part_of(i) for i in ids]


@pytest.mark.parametrize("positions", [(0,) * 33, (0,) * 35, (-1,) + (0,) * 33, (0,) * 33 + (END,)])
def test_other_numbers_are_none(positions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"a ladder is 34 positions from 0 to {2**40 - 1}, got"):
        Ladder(positions)
