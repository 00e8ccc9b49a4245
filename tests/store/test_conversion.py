"""What `EmbeddingStore.convert_table` makes of rows: another optimizer, dim or dtype, with weights and counts kept."""

import logging
import re

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from conversions import DIM, all_of, collection, step, train
from damo_torchrec import _core
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableSchema
from damo_torchrec.optim.state_parts import STATE_PARTS
from damo_torchrec.store.conversion import Conversion
from support import kjt, payloads, small_store


@pytest.fixture
def store(each_store):
    return each_store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


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
