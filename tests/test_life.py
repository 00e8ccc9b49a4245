"""What options say of how long rows live: what is taken, what is refused, and what is in force."""

import json
from dataclasses import asdict, replace

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.document import parse
from damo_torchrec.life import ASKS_NOTHING, AskedLife, Life
from damo_torchrec.options import TableOptions

ALL = Life(
    admit=damo.Admit(sightings=3, probability=0.5, within_steps=None),
    expire=[damo.Idle(days=30), damo.Idle(steps=50_000, below_count=2)],
    min_rows=1,
    max_rows=100,
    keep_rows=90,
    credit=7,
)


@pytest.mark.parametrize(
    ("given", "seconds", "shown"),
    [
        ({"days": 30}, 2_592_000.0, "Idle(days=30)"),
        ({"hours": 36}, 129_600.0, "Idle(hours=36)"),
        ({"minutes": 0.5}, 30.0, "Idle(seconds=30)"),
        ({"seconds": 0.25, "below_count": 16}, 0.25, "Idle(seconds=0.25, below_count=16)"),
        ({"steps": 7}, None, "Idle(steps=7)"),
        ({"hours": 24}, 86_400.0, "Idle(days=1)"),
    ],
)
def test_a_duration_is_kept_in_seconds_and_shown_as_it_reads_best(given, seconds, shown):
    rule = damo.Idle(**given)
    assert (rule.seconds, repr(rule)) == (seconds, shown)
    assert eval(shown, {"Idle": damo.Idle}) == rule


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "exactly one of steps, days, hours, minutes and seconds, got none"),
        ({"days": 1, "steps": 2}, ValueError, "got steps and days"),
        ({"below_count": 2}, ValueError, "got none"),
        ({"steps": 0}, ValueError, r"steps must be in 1\.\.4294967295, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an int, got 1.5"),
        ({"steps": True}, TypeError, "steps must be an int, got True"),
        ({"days": 0}, ValueError, "days must be positive.* got 0"),
        ({"days": -1}, ValueError, "days must be positive.* got -1"),
        ({"seconds": float("nan")}, ValueError, "seconds must be positive.* got nan"),
        ({"minutes": float("inf")}, ValueError, "minutes must be positive.* got inf"),
        ({"hours": "2"}, TypeError, "hours must be a number, got '2'"),
        ({"days": 1, "below_count": 15}, ValueError, "power of two, got 15: the nearest are 8 and 16"),
        ({"days": 1, "below_count": 3}, ValueError, "power of two, got 3: the nearest are 2 and 4"),
        ({"days": 1, "below_count": 0}, ValueError, "below_count must be in"),
        ({"days": 1, "below_count": 2.0}, TypeError, "below_count must be an int, got 2.0"),
    ],
)
def test_a_rule_that_says_nothing_or_too_much_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        damo.Idle(**given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"sightings": 0}, ValueError, r"sightings must be in 1\.\."),
        ({"sightings": 2.0}, TypeError, "sightings must be an int, got 2.0"),
        ({"sightings": 2, "probability": 0}, ValueError, "probability must be above 0 and at most 1, got 0"),
        ({"sightings": 2, "probability": 1.5}, ValueError, "at most 1, got 1.5"),
        ({"sightings": 2, "probability": float("nan")}, ValueError, "got nan"),
        ({"sightings": 2, "probability": "all"}, TypeError, "must be a number, got 'all'"),
        ({"sightings": 2, "within_steps": 0}, ValueError, "within_steps must be in 1"),
    ],
)
def test_an_admission_that_is_none_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        damo.Admit(**given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"admit": 3}, TypeError, "admit must be a damo.Admit or None, got 3"),
        ({"expire": damo.Idle(days=1)}, TypeError, r"a list of damo.Idle.* got one by itself: \[Idle\(days=1\)\]"),
        ({"expire": [30]}, TypeError, "got one with 30"),
        ({"expire": "30d"}, TypeError, "got '30d'"),
        ({"expire": [damo.Idle(days=1), damo.Idle(hours=24)]}, ValueError, "a rule twice"),
        ({"min_rows": -1}, ValueError, r"min_rows must be in 0\.\."),
        ({"max_rows": 0}, ValueError, r'at least 1, got 0; float\("inf"\) is for any number'),
        ({"max_rows": 5e7}, TypeError, "max_rows must be an int, got 50000000.0"),
        ({"max_rows": -1}, ValueError, "max_rows must be in 1"),
        ({"keep_rows": 0}, ValueError, "keep_rows must be in 1"),
        ({"credit": -1}, ValueError, "credit must be in 0"),
        ({"credit": 1.5}, TypeError, "credit must be an int, got 1.5"),
    ],
)
def test_options_that_are_none_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        TableOptions(**given)


@pytest.mark.parametrize(
    ("asked", "before", "message"),
    [
        ({"keep_rows": 9}, Life(), "keep_rows says how max_rows is kept to: it needs max_rows"),
        ({"credit": 9}, Life(), "credit says how max_rows is kept to"),
        ({"max_rows": 9, "keep_rows": 10}, Life(), "keep_rows must be at most max_rows, which is 9, got 10"),
        ({"keep_rows": 10}, Life(max_rows=9), "at most max_rows, which is 9"),
        ({"max_rows": 9, "min_rows": 10}, Life(), "min_rows must be at most max_rows, which is 9, got 10"),
        ({"max_rows": 9}, Life(min_rows=10), "min_rows must be at most max_rows"),
    ],
)
def test_what_contradicts_itself_with_what_the_table_has_is_refused(asked, before, message):
    with pytest.raises(ValueError, match=message):
        AskedLife(**asked).over(before)


def test_what_is_not_asked_stays_and_what_is_asked_holds():
    assert ASKS_NOTHING.over(ALL) == ALL
    assert TableOptions().life.asks_nothing
    assert AskedLife(credit=0).over(ALL) == replace(ALL, credit=0)
    assert AskedLife(max_rows=100).over(ALL) == ALL
    assert AskedLife(max_rows=50).over(ALL) == replace(ALL, max_rows=50, keep_rows=None), "keep_rows goes with it"
    assert AskedLife(max_rows=50, keep_rows=40).over(ALL) == replace(ALL, max_rows=50, keep_rows=40)


def test_all_of_it_can_be_switched_off():
    off = TableOptions(admit=damo.Admit(sightings=1), expire=[], min_rows=0, max_rows=float("inf")).life
    assert off.over(replace(ALL, credit=9)) == replace(Life(), admit=damo.Admit(sightings=1)) == off.over(Life())
    assert str(Life()) == "no rule: every id gets a row, which stays"


@pytest.mark.parametrize(("max_rows", "kept"), [(1, 1), (15, 15), (16, 15), (160, 150), (1_000_000, 937_500)])
def test_a_cut_keeps_15_of_16_rows_unless_it_is_said(max_rows, kept):
    assert Life(max_rows=max_rows).kept_rows() == kept
    assert Life(max_rows=max_rows, keep_rows=1).kept_rows() == 1
    assert Life().kept_rows() is None


def test_two_that_ask_differ_only_where_both_ask():
    one = AskedLife(max_rows=5, expire=[damo.Idle(days=1)])
    assert not one.difference(AskedLife(credit=3, max_rows=5))
    assert one.difference(AskedLife(max_rows=6)) == "max_rows 5, got 6"
    assert one.difference(AskedLife(expire=[])) == "expire (Idle(days=1),), got ()"


def test_a_manifest_gives_back_what_it_was_given():
    for life in (ALL, Life()):
        assert parse(json.loads(json.dumps(asdict(life))), Life, "life") == life


@pytest.mark.parametrize(
    "damage",
    [
        {"credit": -1},
        {"credit": 2**40},
        {"max_rows": 0},
        {"max_rows": "9"},
        {"max_rows": None},
        {"keep_rows": 101},
        {"expire": None},
        {"expire": [{}]},
        {"expire": [{"steps": 1, "seconds": 1.0, "below_count": None}]},
        {"expire": [{"steps": None, "seconds": 1e300, "below_count": None}]},
        {"expire": [{"steps": True, "seconds": None, "below_count": None}]},
        {"expire": [{"steps": 1, "seconds": None, "below_count": 3}]},
        {"admit": None},
        {"admit": {"sightings": 1, "probability": 2.0, "within_steps": None}},
        {"admit": {"sightings": 2**31, "probability": 1.0, "within_steps": None}},
        {"others": 1},
    ],
    ids=str,
)
def test_a_manifest_that_says_otherwise_is_refused(damage):
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says: the document's reader names the field
        parse({**asdict(ALL), **damage}, Life, "life")
