"""`Table.get_state`, `set_state` and `metadata`: for rules of one's own. The oracle is torch.optim and TorchRec."""

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from damo_torchrec import _core
from damo_torchrec.optim.state_parts import STATE_PARTS
from support import config, kjt, small_store

DIM = 3
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5}),
    "adam": (torch.optim.Adam, {"lr": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
}


@pytest.fixture
def store():
    with small_store() as opened:
        yield opened


def collection(store, optimizer=torch.optim.Adam, kwargs=None, dim=DIM):
    return damo.EmbeddingBagCollection([config("t", dim)], optimizer, kwargs or {"lr": 0.1}, store=store)


def step(ebc, ids, factor=1.0):
    (factor * ebc(kjt({"t": [[i] for i in ids]})).values() * torch.arange(1.0, DIM + 1)).sum().backward()


def test_every_rule_says_what_its_state_is():
    assert set(STATE_PARTS) == set(_core.UPDATE_RULES)
    for rule, parts in STATE_PARTS.items():
        schema = _core.TableSchema()
        schema.dim, schema.optimizer = 5, _core.OptimizerConfig(rule)
        header = 8
        assert _core.payload_size(schema) == 5 * 4 + sum(part.width(5) for part in parts) * 4 + header


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_names_and_numbers_are_those_of_torch(store, name):
    optimizer, kwargs = OPTIMIZERS[name]
    ebc = collection(store, optimizer, kwargs)
    start = ebc(kjt({"t": [[7]]})).values().detach()
    peer = torch.nn.Parameter(start.clone())
    torchs = optimizer([peer], **kwargs)
    for factor in (1.0, -2.0, 0.5):
        step(ebc, [7], factor)
        peer.grad = factor * torch.arange(1.0, DIM + 1)[None]
        torchs.step()
    table = store.table("t")
    state = table.get_state([7])
    theirs = {key: value for key, value in torchs.state[peer].items() if key != "step" and value is not None}
    assert set(state) == set(theirs)
    for part, value in theirs.items():
        torch.testing.assert_close(state[part], value, rtol=1e-5, atol=1e-7)
    new = table.get_state([8])
    assert all(bool((value == kwargs.get("initial_accumulator_value", 0.0)).all()) for value in new.values())
    assert len(table) == 1, "reading creates no row"


def test_one_number_of_a_row_has_one_dimension(store):
    step(collection(store, torchrec.optim.RowWiseAdagrad), [1, 2], 2.0)
    state = store.table("t").get_state([2, 2, 9])
    mean_square = (2.0**2 + 4.0**2 + 6.0**2) / 3
    assert state["sum"].tolist() == pytest.approx([mean_square, mean_square, 0.0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_got_and_is_set_trains_on_as_before(store, name):
    ebc = collection(store, *OPTIMIZERS[name])
    table = store.table("t")
    step(ebc, [1, 2])
    state, weights, metadata = table.get_state([1, 2]), table.get([1, 2]), table.metadata([1, 2])
    step(ebc, [1, 2], -3.0)
    after = table.get([1, 2])
    with small_store() as other:
        twin = collection(other, *OPTIMIZERS[name])
        step(twin, [1, 2], 9.0)
        copy = other.table("t")
        copy.set([1, 2], weights)
        if name != "momentum":  # whose buffer begins with a row's first update
            copy.set_state([1, 2], state)
            step(twin, [1, 2], -3.0)
            torch.testing.assert_close(copy.get([1, 2]), after)
    assert metadata.updates.tolist() == [1, 1]


def test_setting_state_keeps_weights_counts_and_other_state(store):
    ebc = collection(store)
    step(ebc, [1, 2])
    step(ebc, [2])
    table = store.table("t")
    weights, before = table.get([1, 2]), table.get_state([1, 2])
    table.set_state(np.array([2]), {"exp_avg": np.full((1, DIM), 0.25)})
    state = table.get_state([1, 2])
    assert state["exp_avg"].tolist() == [before["exp_avg"][0].tolist(), [0.25] * DIM]
    assert torch.equal(state["exp_avg_sq"], before["exp_avg_sq"])
    assert torch.equal(table.get([1, 2]), weights)
    assert table.metadata([1, 2]).updates.tolist() == [1, 2]
    assert table.metadata([1, 2]).last_step.tolist() == [1, 2]
    table.set_state([1, 1], {"exp_avg": [[1.0] * DIM, [2] * DIM]})
    assert table.get_state([1])["exp_avg"].tolist() == [[2.0] * DIM], "the last of equal ids wins"


def test_metadata_tells_updates_last_steps_and_which_ids_have_rows(store):
    ebc = collection(store)
    for ids in ([1, 2], [2], [2, 3]):
        step(ebc, ids)
    table = store.table("t")
    table.set([9], [[1, 2, 3]])
    step(ebc, [1])
    metadata = table.metadata([3, 2, 1, 9, 404, 2])
    assert metadata.exists.tolist() == [True, True, True, True, False, True]
    assert metadata.updates.tolist() == [1, 3, 2, 0, 0, 3]
    assert metadata.last_step.tolist() == [3, 3, 4, 3, 0, 3]
    assert table.metadata([]).updates.tolist() == []
    assert len(table) == 4


def test_a_rule_of_ones_own_deletes_what_is_rare(store):
    ebc = collection(store)
    step(ebc, range(10))
    for _ in range(2):
        step(ebc, [3, 4])
    table = store.table("t")
    for ids, weights in table.items(batch_size=4):
        assert weights.shape == (len(ids), DIM)
        table.delete(ids[table.metadata(ids).updates < 3])
    assert table.contains(range(10)).nonzero().flatten().tolist() == [3, 4]


def test_state_survives_eviction_and_reopening(tmp_path):
    ids = list(range(500))
    with small_store(tmp_path / "store", cache_bytes=1024) as store:
        step(collection(store), ids)
        table = store.table("t")
        values = torch.arange(500.0)[:, None].expand(500, DIM)
        table.set_state(ids, {"exp_avg_sq": values})
        assert torch.equal(table.get_state(ids)["exp_avg_sq"], values)
    with small_store(tmp_path / "store") as store:
        assert torch.equal(store.table("t").get_state(ids)["exp_avg_sq"], values)
        assert store.table("t").metadata(ids).updates.tolist() == [1] * 500


def test_reading_state_and_metadata_is_no_training_hit(store):
    step(collection(store), [1])
    before = store.stats().tables["t"].training
    table = store.table("t")
    table.get_state([1, 2]), table.metadata([1, 2]), table.get([1, 2])
    assert store.stats().tables["t"].training == before


WRONG = {
    "a name that it has not": ({"sum": [[0.0] * DIM]}, ValueError, r"state is \['exp_avg', 'exp_avg_sq'\], got 'sum'"),
    "another shape": ({"exp_avg": [[0.0]]}, ValueError, r"exp_avg must have the shape \(1, 3\), got \(1, 1\)"),
    "nan": ({"exp_avg": [[float("nan")] * DIM]}, ValueError, "exp_avg must be finite"),
    "beyond float32": ({"exp_avg": [[1e300] * DIM]}, ValueError, "exp_avg must be finite"),
    "negative squares": ({"exp_avg_sq": [[-1.0] * DIM]}, ValueError, "must not be negative"),
    "ints": ({"exp_avg": np.ones((1, DIM), dtype=int)}, TypeError, "got an array of int64"),
}


@pytest.mark.parametrize(("state", "error", "message"), WRONG.values(), ids=WRONG)
def test_wrong_state_is_refused(store, state, error, message):
    step(collection(store), [1])
    table = store.table("t")
    before = table.get_state([1])
    with pytest.raises(error, match=message):
        table.set_state([1], state)
    assert all(torch.equal(value, before[name]) for name, value in table.get_state([1]).items())


def test_state_of_an_id_without_a_row_is_refused_and_none_is_set(store):
    step(collection(store), [1])
    table = store.table("t")
    before = table.get_state([1])["exp_avg"]
    with pytest.raises(ValueError, match="id 5 has no row"):
        table.set_state([1, 5], {"exp_avg": [[7.0] * DIM] * 2})
    assert torch.equal(table.get_state([1])["exp_avg"], before)
    assert len(table) == 1


def test_a_read_only_store_shows_state_and_refuses_to_set_it(tmp_path):
    with small_store(tmp_path / "store") as store:
        step(collection(store), [1])
    with damo.EmbeddingStore(tmp_path / "store", read_only=True) as store:
        assert store.table("t").get_state([1])["exp_avg"].abs().sum() > 0
        with pytest.raises(ValueError, match="read-only"):
            store.table("t").set_state([1], {"exp_avg": [[0.0] * DIM]})
