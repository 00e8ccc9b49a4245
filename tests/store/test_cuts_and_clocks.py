"""What `max_rows` and `min_rows` leave of batches of any size, and what rules by time make of leaps of the clock."""

import random
import warnings

import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, small_store

HOUR = 3600.0


@pytest.fixture
def store(tmp_path):
    with small_store(tmp_path / "store") as store:
        yield store


def collection(store, name="t", **options):
    given = {name: damo.TableOptions(**options)} if options else None
    return damo.EmbeddingBagCollection(
        [config(name, 2)], torch.optim.SGD, {"lr": 0.1}, store=store, table_options=given
    )


def train(ebc, ids, name="t"):
    ebc(kjt({name: [list(ids)]})).values().sum().backward()


# ------------------------------------------------------------------ cuts


def test_a_cut_takes_some_of_the_rows_of_one_batch(store):
    ebc, table = collection(store, max_rows=1_000), store.table("t")
    train(ebc, range(999))
    train(ebc, [10_001, 10_002])
    assert 890 <= len(table) <= 938
    assert len(table) == sum(len(ids) for ids, _ in table.items())
    assert table.contains([10_001, 10_002]).all()


def test_a_batch_of_more_than_the_limit_leaves_as_many_as_it_should(store):
    ebc, table = collection(store, max_rows=1_000), store.table("t")
    train(ebc, range(1_200))
    assert len(table) == 1_200
    train(ebc, [])
    assert 890 <= len(table) <= 938


@pytest.mark.parametrize("before", [{}, {"max_rows": 5_000}, {"expire": [damo.Idle(days=1)]}])
def test_a_limit_below_what_one_batch_has_brought_leaves_as_many_as_it_should(store, before):
    store.clock = lambda: 0.0
    ebc = collection(store, **before)
    train(ebc, range(2_000))
    del ebc
    ebc = collection(store, max_rows=1_000, keep_rows=900)
    train(ebc, [-1])
    assert 860 <= len(store.table("t")) <= 900


def test_expiry_goes_as_far_as_min_rows_within_a_batch(store):
    ebc, table = collection(store, expire=[damo.Idle(steps=2)], min_rows=300), store.table("t")
    train(ebc, range(1_000))
    for _ in range(5):
        train(ebc, [])
    assert 300 <= len(table) <= 345


@pytest.mark.parametrize("seed", range(3))
def test_batches_of_any_size_leave_what_they_should(store, seed):
    chance = random.Random(seed)
    ebc, table = collection(store, max_rows=300, keep_rows=280), store.table("t")
    for _ in range(40):
        ids = chance.sample(range(2_000), chance.choice([0, 1, 30, 200, 900]))
        before, cut = int((~table.contains(ids)).sum()) + len(table), table.stats().life.cut
        train(ebc, ids)
        assert len(table) <= max(300, len(ids))
        if table.stats().life.cut > cut:
            assert min(280, before) - 15 <= len(table) <= max(280, len(ids))


# ------------------------------------------------------------------ clocks


def told_of_clocks(recwarn):
    return [str(warning.message) for warning in recwarn if warning.category is damo.ClockWarning]


def test_each_rule_counts_half_of_its_own_time_of_a_leap(store, recwarn):
    now = [0.0]
    store.clock = lambda: now[0]
    ebc = collection(store, expire=[damo.Idle(hours=1, below_count=2), damo.Idle(days=3)])
    table = store.table("t")
    train(ebc, [1])
    train(ebc, [1, 2])
    for _ in range(8):  # nights of 8 hours
        now[0] += 8 * HOUR
        train(ebc, [])
    assert table.contains([1, 2]).tolist() == [True, False]
    now[0] += 8 * HOUR + 1
    train(ebc, [])
    assert table.contains([1]).tolist() == [False]
    assert "1800 by Idle(hours=1, below_count=2) of table 't'. No rows" in told_of_clocks(recwarn)[0]


def test_a_leap_warns_once_whatever_table_is_updated_and_reading_figures_takes_nothing(store, recwarn):
    now = [0.0]
    store.clock = lambda: now[0]
    hours = collection(store, "hours", expire=[damo.Idle(hours=1)])
    days = collection(store, "days", expire=[damo.Idle(days=3)])
    train(hours, [1], "hours")
    train(days, [1], "days")
    now[0] += 8 * HOUR
    train(days, [2], "days")
    (told,) = told_of_clocks(recwarn)
    assert "by 28800 seconds, of which count: 1800 by Idle(hours=1) of table 'hours'. No rows" in told
    engine, index = store.session.engine, store.table("hours").opened.index
    assert engine.life_stats(index).clock_gap == engine.life_stats(index).clock_gap == 8 * HOUR
    train(hours, [2], "hours")
    train(days, [2], "days")
    assert len(told_of_clocks(recwarn)) == 1
    assert store.table("hours").contains([1]).tolist() == [True]


def test_time_in_which_other_tables_were_updated_counts_wholly(store):
    now = [0.0]
    store.clock = lambda: now[0]
    one = collection(store, "one", expire=[damo.Idle(hours=1)])
    other = collection(store, "other")
    train(one, [1], "one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            now[0] += HOUR / 4
            train(other, [1], "other")
        assert store.table("one").contains([1]).all()
        train(one, [2], "one")
    assert store.table("one").contains([1, 2]).tolist() == [False, True]


def test_leaps_are_kept_with_a_checkpoint(tmp_path):
    options = {"expire": [damo.Idle(hours=1, below_count=1), damo.Idle(hours=10)]}
    now = [0.0]
    for idle in (4, 7, 2):  # of which the rule counts 4, 5 and 2
        with small_store(tmp_path / "store") as store:
            store.clock = lambda: now[0]
            ebc = collection(store, **options)
            if now[0] == 0:
                train(ebc, [1])
            now[0] += idle * HOUR
            with pytest.warns(damo.ClockWarning):
                train(ebc, [])
            assert store.table("t").contains([1]).tolist() == [idle != 2]
