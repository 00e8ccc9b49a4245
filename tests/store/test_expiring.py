"""`EmbeddingStore.expire`: rows that go by what is in them."""

import logging
import threading

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from support import config, kjt, payloads, small_store


@pytest.fixture
def store(each_store):
    return each_store


def train(store, *batches, names=("a",)):
    ebc = damo.EmbeddingBagCollection(
        [config(name, 4) for name in names], torch.optim.Adagrad, {"lr": 0.1}, store=store
    )
    for ids in batches:
        ebc(kjt({name: [list(ids)] for name in names})).values().sum().backward()
    return ebc


def set_rows(store, name, weights):
    """Rows 0, 1, ... with these weights in every column, set at step 1."""
    train(store, [1_000_000], names=[name])
    table = store.table(name)
    table.set(range(len(weights)), torch.tensor(weights)[:, None].expand(-1, 4).clone())
    table.delete([1_000_000])
    return table


def test_rows_of_small_norms_go_unless_they_are_new(store):
    table = set_rows(store, "a", [0.0, 0.1, -0.5, 0.5, 1.0])
    assert store.expire(below_norm=0.3) == {"a": 0}, "they were set in the newest step"
    train(store, [4])
    assert store.expire(below_norm=1.0) == {"a": 2}, "a norm of 1 is not below 1"
    assert table.contains(range(5)).tolist() == [False, False, True, True, True]
    assert store.expire(below_norm=2.1, idle_steps=2) == {"a": 0}
    train(store, [4])
    assert store.expire(below_norm=2.1, idle_steps=2) == {"a": 2}
    assert store.expire("a", below_norm=100.0, idle_steps=0) == {"a": 1}
    assert len(table) == 0


def test_a_function_chooses_by_all_that_a_row_has(store):
    train(store, [1, 2], [2, 3], [3])
    table, seen = store.table("a"), {}

    def where(ids, weights, last_steps, counts):
        assert [t.dtype for t in (ids, weights, last_steps, counts)] == [torch.int64, torch.float32] + 2 * [torch.int64]
        torch.testing.assert_close(weights, table.get(ids), rtol=0, atol=0)
        seen.update(zip(ids.tolist(), zip(last_steps.tolist(), counts.tolist(), strict=True), strict=True))
        return ((counts == 2) & (last_steps < 3)).numpy()

    assert store.expire(["a"], where=where) == {"a": 1}
    assert seen == {1: (1, 1), 2: (2, 2), 3: (3, 2)}
    assert table.contains([1, 2, 3]).tolist() == [True, False, True]


def test_of_many_rows_the_right_ones_go_and_the_others_stay_as_they_are(store):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randperm(30_000, generator=generator)
    train(store, [-1])
    table = store.table("a")
    weights = torch.rand(len(ids), 4, generator=generator)
    table.set(ids, weights)
    train(store, [-1])
    before = payloads(store, "a")
    gone = weights.to(torch.float64).square().sum(dim=1) < 0.8**2
    assert store.expire(below_norm=0.8) == {"a": int(gone.sum())}
    assert 1000 < int(gone.sum()) < 29_000
    for i in ids[gone].tolist():
        del before[i]
    assert payloads(store, "a") == before


def test_the_tables_that_are_named_and_no_others(store):
    train(store, [1], [2], names=["a", "b", "c"])
    every = {"where": lambda ids, *_: torch.ones(len(ids), dtype=torch.bool)}
    assert store.expire(["b", "c", "b"], **every) == {"b": 2, "c": 2}
    assert store.expire(**every) == {"a": 2, "b": 0, "c": 0}
    with pytest.raises(KeyError, match=r"no table 'd'; its tables are \['a', 'b', 'c'\]"):
        store.expire(["a", "d"], **every)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "exactly one of below_norm and where, got none: options like Idle go by themselves"),
        ({"below_norm": 1.0, "where": print}, ValueError, "exactly one of below_norm and where, got both"),
        ({"below_norm": 0}, ValueError, "below_norm must be positive and finite, got 0"),
        ({"below_norm": float("nan")}, ValueError, "got nan"),
        ({"below_norm": "1"}, TypeError, "below_norm must be a number, got '1'"),
        ({"below_norm": 1.0, "idle_steps": -1}, ValueError, "idle_steps must be in 0"),
        ({"below_norm": 1.0, "idle_steps": 1.0}, TypeError, "idle_steps must be an int"),
        ({"where": lambda *_: None, "idle_steps": 5}, ValueError, "where gets the rows' last_steps"),
        ({"where": 5}, TypeError, "where must be a function of ids, weights, last_steps, counts, got 5"),
        ({"where": lambda *_: True}, TypeError, "return a bool tensor or array of the shape .* got bool"),
        ({"where": lambda ids, *_: ids}, ValueError, r"got torch.int64 of the shape \(2,\)"),
        ({"where": lambda ids, *_: np.ones((2, 1), dtype=bool)}, ValueError, r"got torch.bool of the shape \(2, 1\)"),
    ],
)
def test_a_call_that_says_nothing_or_too_much_is_refused(store, given, error, message):
    train(store, [1, 2])
    with pytest.raises(error, match=message):
        store.expire(**given)
    assert len(store.table("a")) == 2


def test_a_function_that_raises_leaves_the_rest_and_one_that_changes_rows_is_told(store):
    train(store, [1, 2], names=["a", "b"])

    def where(ids, weights, last_steps, counts):
        if "b" in done:
            store.checkpoint()
        done.append("b")
        return torch.ones(len(ids), dtype=torch.bool)

    done = []
    with pytest.raises(damo.DamoError, match=r"cannot checkpoint the store .* in the middle of another call"):
        store.expire(where=where)
    assert [len(table) for table in store.tables().values()] == [0, 2]


def test_a_thread_that_trains_waits_so_that_no_row_goes_that_it_has_updated(store):
    ebc = train(store, [1, 2])
    asked, other = threading.Event(), []

    def step():
        asked.wait(10)
        ebc(kjt({"a": [[2]]})).values().sum().backward()

    def where(ids, *_):
        asked.set()
        other[0].join(0.2)
        return torch.ones(len(ids), dtype=torch.bool)

    other.append(threading.Thread(target=step))
    other[0].start()
    assert store.expire(where=where) == {"a": 2}
    other[0].join()
    assert store.table("a").metadata([1, 2]).updates.tolist() == [0, 1], "row 2 began anew afterwards"


def test_what_has_gone_is_durable_and_in_deltas_and_the_log(tmp_path, caplog):
    with small_store(tmp_path / "store") as store:
        train(store, [1, 2], [2])
        store.checkpoint()
        with caplog.at_level(logging.INFO):
            store.expire(below_norm=100.0)
        assert "of 2 rows of table 'a'" in caplog.text
        delta = damo.Delta.read(store.export_delta(tmp_path / "delta", since=2))
        assert delta.tables["a"].deleted.tolist() == [1]
    with small_store(tmp_path / "store") as store:
        assert store.table("a").contains([1, 2]).tolist() == [False, True]
    with (
        damo.EmbeddingStore(tmp_path / "store", read_only=True) as store,
        pytest.raises(ValueError, match="is read-only: no rows can go"),
    ):
        store.expire(below_norm=1.0)


def test_nothing_that_goes_is_no_change(tmp_path):
    with small_store(tmp_path / "store") as store:
        train(store, [1, 2], [2])
        made = store.checkpoint()
        assert store.expire(below_norm=1e-30) == {"a": 0}
        assert store.checkpoint() == made
