"""`damo_torchrec.checkpoints.pickle_rules`: tuples that nobody could hash are found in the opcodes of a pickle."""

import pickle
from collections import OrderedDict

import pytest

from damo_torchrec.checkpoints.pickle_rules import check_tuples

PROTO, STOP = b"\x80\x02", b"."


def doubled(times: int) -> bytes:
    """A pickle of a tuple of twice the same, and so on: small, and its hash takes 2 ** times steps."""
    return PROTO + b"K\x01" + b"".join(b"q\x01h\x01h\x01\x86" for _ in range(times)) + STOP


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_is_usual_passes(protocol):
    shared = (0.9, 0.999)
    value = {"groups": [{"betas": shared, "params": [1, 2]}, {"betas": shared}], "d": OrderedDict(a=((1, 2), 3))}
    check_tuples(pickle.dumps([value, (), (1,), ("x", (2, (3, (4,)))), list(range(1000))], protocol))


def test_a_tuple_that_holds_itself_many_times_is_refused():
    assert pickle.loads(doubled(2)) == ((1, 1), (1, 1))
    check_tuples(doubled(10))
    with pytest.raises(ValueError, match="items"):
        check_tuples(doubled(40))


@pytest.mark.parametrize("wrap", [b"\x85", b"q\x01(h\x01t"])
def test_a_tuple_that_is_nested_too_deep_is_refused(wrap):
    check_tuples(PROTO + b"N" + wrap * 10 + STOP)
    with pytest.raises(ValueError, match="deep"):
        check_tuples(PROTO + b"N" + wrap * 100_000 + STOP)


@pytest.mark.parametrize("contents", [b"", b"x", PROTO, b"\x80\x02K", b"...."])
def test_what_is_no_pickle_is_refused_or_nothing(contents):
    try:
        check_tuples(contents)
    except ValueError:
        return
    assert b"." in contents
