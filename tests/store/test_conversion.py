"""`EmbeddingStore.convert_table`: another optimizer, dim or dtype of rows, with weights and counts kept."""

import logging
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableSchema
from damo_torchrec.optim.state_parts import STATE_PARTS
from damo_torchrec.store.conversion import Conversion
from processes import kill_this_process, run_until_killed
from raw_records import decode_key, opened
from support import config, kjt, payloads, small_store

DIM = 4


@pytest.fixture(params=["rocksdb", "memory"])
def store(request, tmp_path):
    with small_store(tmp_path / "store" if request.param == "rocksdb" else None) as opened_store:
        yield opened_store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def collection(store, optimizer=torch.optim.Adam, kwargs=None, dim=DIM, **options):
    table = damo.TableOptions(optimizer=(optimizer, {"lr": 0.1, **(kwargs or {})}), **options)
    return damo.EmbeddingBagCollection([config("t", dim)], store=store, table_options={"t": table})


def step(ebc, ids, factor=1.0):
    out = ebc(kjt({"t": [[i] for i in ids]})).values()
    (factor * out * torch.arange(1.0, out.shape[1] + 1)).sum().backward()


def train(store, *args, ids=range(1, 40), **options):
    """Two updates of some rows and one of others, by a collection that is gone when it returns."""
    ebc = collection(store, *args, **options)
    step(ebc, ids)
    step(ebc, list(ids)[::2], -0.5)


def all_of(table):
    """Weights, state and metadata of all rows."""
    ids, weights = table.to_torch()
    metadata = table.metadata(ids)
    return ids, weights, table.get_state(ids), metadata.updates, metadata.last_step


# ---- the optimizer


ADAMS = {"ADAM", "AMSGRAD", "LAMB", "PARTIAL_ROWWISE_ADAM", "PARTIAL_ROWWISE_LAMB"}


def schema_of(rule, dim):
    numbers = InitializerNumbers(a=0.0, b=0.0, low=0.0, high=1.0)
    optimizer = {"name": rule, "initial_accumulator_value": 0.0}
    return TableSchema(dim, optimizer, {"name": "Constant", "value": 0.0}, numbers)


def parts_of(state, rule, dim):
    widths = [part.width(dim) for part in STATE_PARTS[rule]]
    return dict(zip([p.name for p in STATE_PARTS[rule]], np.split(state, np.cumsum(widths)[:-1], axis=1), strict=True))


@pytest.mark.parametrize("dims", [(4, 4), (4, 6), (4, 2)])
@pytest.mark.parametrize("old", _core.UPDATE_RULES)
def test_state_that_means_the_same_is_taken_over(old, dims):
    for new in _core.UPDATE_RULES:
        conversion = Conversion(schema_of(old, dims[0]), schema_of(new, dims[1]))
        given = np.random.default_rng(0).random((3, conversion.old_state), dtype=np.float32)
        before, kept = parts_of(given, old, dims[0]) if conversion.old_state else {}, min(dims)
        became = conversion.state(given)
        assert became.shape == (3, conversion.new_state)
        alike = old == new or {old, new} <= ADAMS or {old, new} <= {"ADAGRAD", "ROWWISE_ADAGRAD"}
        for name, values in (parts_of(became, new, dims[1]) if conversion.new_state else {}).items():
            was = before.get(name) if alike else None
            expected = np.zeros_like(values)
            if was is not None and values.shape[1] == 1:
                expected = was[:, :kept].mean(axis=1, keepdims=True)
            elif was is not None and was.shape[1] > 1:
                expected[:, :kept] = was[:, :kept]
            np.testing.assert_allclose(values, expected, rtol=1e-6)
            assert (name in conversion.anew) == (not expected.any())


@pytest.mark.parametrize(("old", "new"), [("ADAM", "PARTIAL_ROWWISE_LAMB"), ("FTRL", "SGD"), ("SGD", "AMSGRAD")])
def test_weights_and_counts_stay(store, old, new):
    train(store, torch.optim.SGD)
    store.convert_table("t", optimizer=old)
    before, iteration = all_of(store.table("t")), store.table("t").iter
    store.convert_table("t", optimizer=new)
    now = all_of(store.table("t"))
    assert store.table("t").iter == iteration
    assert all(torch.equal(before[part], now[part]) for part in (0, 1, 3, 4))
    assert list(now[2]) == [part.name for part in STATE_PARTS[new]]


def test_training_with_the_new_optimizer_is_that_of_torch_with_the_state_that_it_took_over(store):
    """AMSGrad after Adam: torch.optim's own, given Adam's moments, and a largest second moment of zero."""
    train(store, ids=[7])
    table = store.table("t")
    weights, state, count = table.get([7]), table.get_state([7]), table.iter
    store.convert_table("t", optimizer=torch.optim.Adam, optimizer_kwargs={"amsgrad": True})
    ebc = collection(store, torch.optim.Adam, {"amsgrad": True})
    peer = torch.nn.Parameter(weights.clone())
    torchs = torch.optim.Adam([peer], lr=0.1, amsgrad=True)
    torchs.state[peer] = {
        "step": torch.tensor(float(count)),
        "exp_avg": state["exp_avg"].clone(),
        "exp_avg_sq": state["exp_avg_sq"].clone(),
        "max_exp_avg_sq": torch.zeros(1, DIM),
    }
    for factor in (1.0, -3.0, 0.25):
        step(ebc, [7], factor)
        peer.grad = factor * torch.arange(1.0, DIM + 1)[None]
        torchs.step()
    torch.testing.assert_close(table.get([7]), peer.detach(), rtol=1e-5, atol=1e-6)


def test_maxima_of_another_kind_begin_anew(store):
    corrected = {"amsgrad": True, "corrected_max": True}
    train(store, torch.optim.Adam, {"amsgrad": True}, ids=[7])
    before = store.table("t").get_state([7])
    with pytest.raises(damo.SchemaMismatchError, match="corrected_max") as refused:
        collection(store, torch.optim.Adam, corrected)
    eval(re.search(r"store\.convert_table\(.*\)", str(refused.value))[0], {"store": store})
    collection(store, torch.optim.Adam, corrected)
    after = store.table("t").get_state([7])
    assert all(torch.equal(before[name], after[name]) for name in ("exp_avg", "exp_avg_sq"))
    assert before["max_exp_avg_sq"].all()
    assert not after["max_exp_avg_sq"].any()


def test_rowwise_sums_are_what_rowwise_adagrad_would_have_come_to(store):
    train(store, torch.optim.Adagrad)
    store.convert_table("t", optimizer=torchrec.optim.RowWiseAdagrad)
    with small_store() as other:
        train(other, torchrec.optim.RowWiseAdagrad)
        ids = store.table("t").to_torch()[0]
        expected = other.table("t").get_state(ids)["sum"]
        torch.testing.assert_close(store.table("t").get_state(ids)["sum"], expected)


def test_new_state_and_new_rows_begin_with_the_initial_accumulator_value(store):
    train(store, torch.optim.SGD)
    store.convert_table("t", optimizer=torch.optim.Adagrad, optimizer_kwargs={"initial_accumulator_value": 0.5})
    table = store.table("t")
    assert table.get_state([1, 2, 404])["sum"].unique().tolist() == [0.5]
    step(collection(store, torch.optim.Adagrad, {"initial_accumulator_value": 0.5}), [404])
    assert table.get_state([404])["sum"].tolist() == [[1.5, 4.5, 9.5, 16.5]]


def test_between_adam_and_adamw_there_is_nothing_to_convert(store, caplog):
    caplog.set_level(logging.INFO, "damo_torchrec")
    train(store)
    before = payloads(store, "t")
    store.convert_table("t", optimizer=torch.optim.AdamW)
    assert "is as it is to be already" in caplog.text
    train(store, torch.optim.AdamW, ids=[1000])
    assert {i: row for i, row in payloads(store, "t").items() if i != 1000} == before


# ---- dim and dtype


@pytest.mark.parametrize("initializer", [damo.init.Normal(), damo.init.XavierUniform(), damo.init.Constant(0.25)])
def test_more_columns_are_those_of_new_rows(path, initializer):
    with small_store(path) as store:
        train(store, initializer=initializer)
        ids, weights, state, updates, last_steps = all_of(store.table("t"))
        store.convert_table("t", dim=7)
        table = store.table("t")
        assert table.dim == 7
        _, now, state_now, updates_now, last_steps_now = all_of(table)
        assert torch.equal(now[:, :DIM], weights)
        assert torch.equal(updates_now, updates)
        assert torch.equal(last_steps_now, last_steps)
        for name, values in state.items():
            assert torch.equal(state_now[name][:, :DIM], values)
            assert not bool(state_now[name][:, DIM:].any())
    with small_store() as fresh, small_store(path) as store:
        peer = collection(fresh, dim=7, initializer=initializer)
        new = peer(kjt({"t": [[i] for i in ids.tolist()]})).values()
        assert torch.equal(store.table("t").get(ids)[:, DIM:], new[:, DIM:])
        ebc = collection(store, dim=7, initializer=initializer)
        assert torch.equal(ebc(kjt({"t": [[5000]]})).values(), peer(kjt({"t": [[5000]]})).values())


def test_fewer_columns_are_the_first_ones(store):
    train(store, torch.optim.Adagrad)
    ids, weights, state, updates, _ = all_of(store.table("t"))
    store.convert_table("t", dim=2, optimizer="ROWWISE_ADAGRAD")
    _, now, state_now, updates_now, _ = all_of(store.table("t"))
    assert torch.equal(now, weights[:, :2])
    torch.testing.assert_close(state_now["sum"], state["sum"][:, :2].mean(dim=1))
    assert torch.equal(updates_now, updates)
    assert torch.equal(store.table("t").get(ids.flip(0)), now.flip(0))


@pytest.mark.parametrize(("dtype", "given"), [(torch.float16, torch.float16), (torch.bfloat16, "bfloat16")])
def test_weights_of_16_bits_are_the_nearest_and_back_is_exact(store, dtype, given):
    train(store)
    table = store.table("t")
    _, weights, state, _, _ = all_of(table)
    store.convert_table("t", row_dtype=given)
    assert table.row_dtype == dtype
    _, halves, state_now, _, _ = all_of(table)
    assert torch.equal(halves, weights.to(dtype).float())
    assert all(torch.equal(state_now[name], values) for name, values in state.items())
    store.convert_table("t", row_dtype="float32")
    assert torch.equal(all_of(table)[1], halves)


def test_beyond_float16_is_its_largest_number(store):
    collection(store).tables()[0].set([1], [[1e9, -1e9, 65504, 1]])
    store.convert_table("t", row_dtype=torch.float16)
    assert store.table("t").get([1]).tolist() == [[65504, -65504, 65504, 1]]


# ---- what is around it


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
