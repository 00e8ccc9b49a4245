"""`EmbeddingStore.convert_table`: kills, full disks, checkpoints, deltas, other threads, and refusals."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from conversions import DIM, collection, step, train
from damo_torchrec import _core
from processes import kill_this_process, run_until_killed
from raw_records import decode_key, opened
from support import kjt, payloads, small_store


@pytest.fixture
def store(each_store):
    return each_store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def test_a_name_that_was_given_later_keeps_its_initial_values(store):
    train(store)
    expected = collection(store)(kjt({"t": [[77]]})).values().detach()
    store.rename_table("t", "u")
    store.convert_table("u", optimizer="LION")
    store.rename_table("u", "t")
    assert torch.equal(collection(store, damo.optim.Lion)(kjt({"t": [[77]]})).values(), expected)


def test_many_rows_more_than_the_cache_holds_are_converted_as_other_programs_read_them(path, tmp_path):
    ids = range(-3000, 3000)
    with small_store(path, cache_bytes=1024) as store:
        train(store, ids=ids)
        store.table("t").delete(range(-10, 10))
        before = {int(i): w for i, w in zip(*store.table("t").to_torch(), strict=True)}
        store.convert_table("t", optimizer="SGD", dim=2)
        assert len(store.table("t")) == len(before)
    newest = sorted((path / "checkpoints").iterdir(), key=lambda p: p.stat().st_mtime)[-1]
    with opened(newest, tmp_path) as rows:
        found = dict(rows.items())
    assert {decode_key(key)[0] for key in found} == {2}, "nothing is left of the table that was converted"
    for key, value in found.items():
        weights = np.frombuffer(value[1:9], dtype="<f4")
        assert weights.tolist() == before[decode_key(key)[1]][:2].tolist()
        last_step, count = np.frombuffer(value[9:], dtype="<u4").tolist()
        assert (last_step, count) in {(1, 1), (2, 2)}
    assert len(found) == len(before)


def convert_and_die(path, rows_at_a_time):
    store = small_store(path)
    add_rows, calls = type(store.session.engine).add_rows, []

    def dying(*args):
        add_rows(*args)
        calls.append(1)
        if rows_at_a_time and len(calls) == 2:
            kill_this_process()

    if rows_at_a_time:
        _core.Store.add_rows = dying
        damo.store.conversion._BATCH_BYTES = 10_000
    store.convert_table("t", optimizer="SGD", dim=9)
    kill_this_process()


@pytest.mark.parametrize("in_the_middle", [True, False])
def test_a_kill_leaves_the_table_as_it_was(path, in_the_middle):
    with small_store(path) as store:
        train(store, ids=range(2000))
        before = payloads(store, "t")
    run_until_killed(convert_and_die, path, in_the_middle)
    with small_store(path) as store:
        assert payloads(store, "t") == before
        store.convert_table("t", optimizer="SGD", dim=9)
    with small_store(path) as store:
        assert store.table("t").dim == 9
        assert len(store.table("t")) == 2000


class StillEngine:
    """An engine whose n-th call of add_rows or drop_table fails."""

    def __init__(self, engine, what, n):
        self._engine, self._what, self._left = engine, what, n

    def __getattr__(self, name):
        if name == self._what:
            self._left -= 1
            if self._left == 0:
                raise damo.OutOfSpaceError("the disk is full")
        return getattr(self._engine, name)


@pytest.mark.parametrize("what", ["add_rows", "drop_table"])
def test_a_full_disk_leaves_the_table_as_it_was_and_the_next_attempt_succeeds(path, monkeypatch, what):
    with small_store(path) as store:
        train(store, ids=range(500))
        before = payloads(store, "t")
        handle = store.table("t")
        original = store.session._core
        if what == "add_rows":
            monkeypatch.setattr("damo_torchrec.store.conversion._BATCH_BYTES", 5000)
        engines = pytest.MonkeyPatch()
        engines.setattr(type(store.session), "engine", property(lambda s: failing))
        failing = StillEngine(original, what, 3 if what == "add_rows" else 1)
        engines.setattr("damo_torchrec._core.Scan", lambda engine, index, real=_core.Scan: real(original, index))
        with pytest.raises(damo.OutOfSpaceError, match="full"):
            store.convert_table("t", optimizer="SGD", dim=2)
        engines.undo()
        assert payloads(store, "t") == before
        assert handle.dim == DIM
        assert handle == store.table("t")
        train(store, ids=[1])
        store.convert_table("t", optimizer="SGD", dim=2)
        assert (handle.dim, len(handle)) == (2, 500)
    with small_store(path) as store:
        assert (store.table("t").dim, len(store.table("t"))) == (2, 500)


def test_older_checkpoints_bring_the_table_back_as_it_was(path):
    with small_store(path) as store:
        train(store)
        before, rows = store.checkpoint(), payloads(store, "t")
        handle = store.table("t")
        store.convert_table("t", optimizer="SGD", dim=2)
        after = store.checkpoint()
        store.restore(before)
        assert payloads(store, "t") == rows
        assert (handle.dim, len(handle.get([1])[0])) == (DIM, DIM)
        store.restore(after)
        assert handle.dim == 2
        ebc = collection(store, torch.optim.SGD, dim=2)
        with pytest.raises(damo.SchemaMismatchError, match="dim 4, got 2"):
            store.restore(before)
        step(ebc, [1])


def test_an_iteration_that_has_begun_goes_on_with_the_rows_of_before(store):
    train(store)
    ids, weights = store.table("t").to_torch()
    for dim in (DIM + 60, 1):
        batches = store.table("t").items(batch_size=5)
        first = next(batches)
        store.convert_table("t", dim=dim)
        found = [first, *batches]
        assert torch.equal(torch.cat([one for one, _ in found]), ids)
        assert torch.equal(torch.cat([rows for _, rows in found]), weights)
        ids, weights = store.table("t").to_torch()


def test_rows_are_read_and_set_whole_while_another_thread_converts(store):
    train(store, ids=range(300))
    table, ids = store.table("t"), list(range(300))
    weights = table.get(ids)

    def convert():
        for _ in range(15):
            store.convert_table("t", dim=DIM + 40)
            store.convert_table("t", dim=DIM)

    with ThreadPoolExecutor(1) as pool:
        converting = pool.submit(convert)
        while not converting.done():
            assert torch.equal(table.get(ids)[:, :DIM], weights)
            assert all(len(values) == 300 for values in table.get_state(ids).values())
            wide = torch.cat([weights, weights.new_ones(300, 40)], dim=1)
            with suppress(ValueError, damo.DamoError):  # another dim meanwhile, or the conversion came in between
                table.set(ids, wide[:, : table.dim])
        converting.result()
    assert torch.equal(table.get(ids)[:, :DIM], weights)


def test_deltas_begin_anew(path, tmp_path):
    with small_store(path) as store:
        train(store)
        base = store.checkpoint()
        store.convert_table("t", dim=2)
        with pytest.raises(ValueError, match=r"since then table 't' was converted.*needs a new base"):
            store.export_delta(tmp_path / "delta", since=base)
        anew = store.checkpoint()
        train(store, ids=[5], dim=2)
        delta = damo.Delta.read(store.export_delta(tmp_path / "delta", since=anew))
        assert sorted(delta.tables) == ["t"]


MISMATCHES = {
    "optimizer": ((torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9})),
    "initial value": ((torch.optim.Adagrad, {}), (torch.optim.Adagrad, {"initial_accumulator_value": 0.25})),
    "rows of one number": ((torch.optim.Adagrad, {}), (torchrec.optim.RowWiseAdagrad, {})),
}


@pytest.mark.parametrize(("old", "new"), MISMATCHES.values(), ids=MISMATCHES)
@pytest.mark.parametrize("more", [{}, {"dim": 6, "row_dtype": torch.float16}])
def test_resuming_with_another_schema_is_refused_with_the_very_call_that_converts(path, old, new, more):
    with small_store(path) as store:
        train(store, *old)
    with small_store(path) as store:
        with pytest.raises(damo.SchemaMismatchError, match=r"To have its rows go on so, call (.*) first") as refused:
            collection(store, *new, **more)
        call = re.search(r"call (store\.convert_table\(.*\)) first", str(refused.value))[1]
        eval(call, {"store": store})
        step(collection(store, *new, **more), [1])
        assert store.table("t").metadata([1]).updates.tolist() == [3]


def test_wrong_calls(path):
    with small_store(path) as store:
        train(store)
        before = payloads(store, "t")
        for arguments, error, message in [
            ({"optimizer": "ADAMW"}, ValueError, "a class or one of SGD, .*got 'ADAMW'"),
            ({"optimizer": torch.optim.Rprop}, ValueError, "no update rule for"),
            ({"optimizer": "ADAM", "optimizer_kwargs": {"lr": 1}}, ValueError, r"alone, got \['lr'\]"),
            ({"optimizer": "ADAM", "optimizer_kwargs": {"initial_accumulator_value": 1.0}}, ValueError, "no effect"),
            ({"optimizer_kwargs": {"amsgrad": True}}, ValueError, "need an optimizer"),
            ({"row_dtype": torch.float64}, ValueError, "row_dtype must be float32, float16 or bfloat16"),
            ({"row_dtype": "int8"}, ValueError, "row_dtype must be"),
            ({"dim": 0}, ValueError, "dim must be in 1"),
            ({"dim": 2.0}, TypeError, "dim must be an int"),
            ({"dim": True}, TypeError, "dim must be an int"),
            ({"dim": 1_000_000}, ValueError, "too large for this memory budget"),
        ]:
            with pytest.raises(error, match=message):
                store.convert_table("t", **arguments)
        with pytest.raises(KeyError, match="no table 'x'"):
            store.convert_table("x", dim=3)
        ebc = collection(store)
        with pytest.raises(ValueError, match=r"cannot convert table 't' .* while a collection has it open"):
            store.convert_table("t", dim=3)
        del ebc
        assert payloads(store, "t") == before
    with damo.EmbeddingStore(path, read_only=True) as store, pytest.raises(ValueError, match="read-only"):
        store.convert_table("t", dim=3)


def test_what_becomes_of_it_is_logged(store, caplog):
    caplog.set_level(logging.INFO, "damo_torchrec")
    train(store)
    store.convert_table("t", optimizer="AMSGRAD", dim=5)
    assert "which had dim 4, got 5, and optimizer" in caplog.text
    assert "of its state max_exp_avg_sq began anew" in caplog.text


def test_what_was_seen_of_ids_without_a_row_goes_on(store):
    """Exactly, also of those that are forgotten later."""
    life = {"admit": damo.Admit(sightings=4, within_steps=6), "expire": [damo.Idle(steps=50)]}
    ids = list(range(200))
    ebc = collection(store, torch.optim.Adagrad, **life)
    for number in range(5):
        step(ebc, [i for i in ids if i % 5 <= number])
        step(ebc, [500 + number])
    del ebc
    table = store.table("t")
    table.delete([2, 7])
    before, stats = table.metadata(ids), table.stats().life
    assert stats.sighted > 100
    store.convert_table("t", optimizer=torch.optim.SGD, dim=7, row_dtype="float16")
    after = table.metadata(ids)
    assert torch.equal(after.sightings, before.sightings)
    assert torch.equal(after.last_step, before.last_step)
    assert torch.equal(after.updates, before.updates)
    now = table.stats().life
    assert (now.sighted, now.rows) == (stats.sighted, stats.rows)
    ebc = collection(store, torch.optim.SGD, dim=7, row_dtype=torch.float16, **life)
    step(ebc, ids)
    assert torch.equal(table.contains(ids), before.exists | (before.sightings == 3))
    for _ in range(8):
        step(ebc, [1000, 1000, 1000, 1000])
    assert table.stats().life.sighted == 0
    assert not table.metadata(ids).sightings.any()


def test_what_was_seen_is_in_a_checkpoint_after_the_conversion(path):
    with small_store(path, cache_bytes=1024) as store:
        ebc = collection(store, torch.optim.Adagrad, admit=damo.Admit(sightings=3))
        step(ebc, range(5000))
        step(ebc, range(0, 5000, 2))
        del ebc
        store.convert_table("t", dim=2)
        store.checkpoint()
    with small_store(path) as store:
        table = store.table("t")
        assert table.metadata(range(5000)).sightings.tolist() == [2, 1] * 2500
        assert (len(table), table.stats().life.sighted) == (0, 5000)
