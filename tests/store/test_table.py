"""`Table`: rows by id."""

import pytest
import torch
import torchrec

import damo_torchrec as damo
from mixed_run import INT64_MAX, INT64_MIN, collection, look_up, rows_of, update
from support import A_HANDFUL_OF_ROWS, payloads


@pytest.fixture(params=[0, A_HANDFUL_OF_ROWS], ids=["cached", "evicting"])
def store(request):
    with damo.EmbeddingStore(options=damo.StoreOptions(cache_bytes=request.param)) as opened:
        yield opened


@pytest.fixture
def table(store) -> damo.Table:
    """Dim 4, Adagrad, initial weights 1."""
    ebc = collection(store, "t", "other", initial=1.0, optimizer=torch.optim.Adagrad)
    return ebc.tables()[0]


def filled(values: list[float], dim: int = 4) -> torch.Tensor:
    """Rows of equal weights."""
    return torch.tensor(values)[:, None].expand(-1, dim)


def all_items(table: damo.Table, batch_size: int = 3) -> dict[int, list[float]]:
    found = [(ids, weights) for ids, weights in table.items(batch_size=batch_size)]
    for ids, weights in found:
        assert (ids.dtype, weights.dtype) == (torch.int64, torch.float32)
        assert 0 < len(ids) <= batch_size
        assert weights.shape == (len(ids), table.dim)
    return {int(i): row.tolist() for ids, weights in found for i, row in zip(ids, weights, strict=True)}


# ------------------------------------------------------------------ get, contains, len


def test_get_returns_float32_rows_in_the_order_asked_for(table):
    table.set([3, 1, 2], filled([3.0, 1.0, 2.0]))
    rows = table.get([2, 9, 3, 2])
    assert rows.dtype == torch.float32
    assert rows.shape == (4, 4)
    assert rows[:, 0].tolist() == [2.0, 0.0, 3.0, 2.0]
    assert table.get([]).shape == (0, 4)


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), range(1, 3), torch.tensor([1, 2]), torch.tensor([1, 2]).int()])
def test_ids_come_as_tensors_or_as_sequences(table, ids):
    table.set(ids, filled([1.0, 2.0]))
    assert table.contains(ids).tolist() == [True, True]
    assert table.get(ids)[:, 0].tolist() == [1.0, 2.0]
    table.delete(ids)
    assert len(table) == 0


def test_reading_by_id_creates_nothing(table):
    table.get([1, 2])
    table.contains([1, 2])
    assert len(table) == 0
    assert all_items(table) == {}


def test_contains_and_len_count_rows_once(table):
    table.set([1, 2, 2, 1], filled([1.0, 2.0, 3.0, 4.0]))
    table.set([2], filled([5.0]))
    found = table.contains([1, 2, 3, 1])
    assert found.dtype == torch.bool
    assert found.tolist() == [True, True, False, True]
    assert len(table) == 2


# ------------------------------------------------------------------ set


def test_set_creates_rows_and_the_last_duplicate_wins(table):
    table.set([5, 6, 5], filled([1.0, 2.0, 3.0]))
    assert all_items(table) == {5: [3.0] * 4, 6: [2.0] * 4}


def test_set_gives_the_optimizer_state_of_a_new_row(store, table):
    ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adagrad)
    for _ in range(3):
        update(ebc, {"t": [[1]]})
    table.set([1, 2], filled([1.0, 1.0]))
    raw = payloads(store, "t")
    assert raw[1] == raw[2]
    assert torch.frombuffer(bytearray(raw[1][:32]), dtype=torch.float32).tolist() == [1.0] * 4 + [0.0] * 4
    update(ebc, {"t": [[1], [3]]})  # 3 is new
    assert torch.equal(table.get([1]), table.get([3]))


def test_set_starts_from_the_initial_accumulator_value(store):
    ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adagrad, initial_accumulator_value=0.5)
    store.table("t").set([1], filled([1.0]))
    update(ebc, {"t": [[1], [2]]})
    assert torch.equal(store.table("t").get([1]), store.table("t").get([2]))


def test_set_takes_any_float_tensor(table):
    wide = torch.arange(16, dtype=torch.float64).reshape(2, 8)[:, ::2].requires_grad_()
    table.set([1, 2], wide)
    assert table.get([1, 2]).tolist() == wide.tolist()
    table.set([1], filled([1.5]).half())
    assert table.get([1])[0, 0] == 1.5


# ------------------------------------------------------------------ delete


def test_delete_removes_rows_and_passes_over_what_is_not_there(table):
    table.set([1, 2, 3], filled([1.0, 2.0, 3.0]))
    table.delete([2, 9, 2])
    assert all_items(table) == {1: [1.0] * 4, 3: [3.0] * 4}
    assert len(table) == 2
    assert table.get([2])[0].tolist() == [0.0] * 4
    table.delete([])
    assert len(table) == 2


def test_an_update_after_a_delete_creates_the_row_anew(store, table):
    ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adagrad)
    for _ in range(3):
        update(ebc, {"t": [[1]]})
    table.delete([1])
    update(ebc, {"t": [[1], [2]]})
    raw = payloads(store, "t")
    assert raw[1] == raw[2]


def test_a_delete_between_forward_and_backward_has_the_row_created_anew(store, table):
    ebc = collection(store, "t", initial=1.0, optimizer=torch.optim.Adagrad)
    update(ebc, {"t": [[1]]})
    output = look_up(ebc, {"t": [[1]]})
    table.delete([1])
    output.sum().backward()
    update(ebc, {"t": [[2]]})
    assert torch.equal(table.get([1]), table.get([2]))


def test_what_was_deleted_stays_deleted_after_reopening(tmp_path):
    path = tmp_path / "store"
    with damo.EmbeddingStore(path) as store:
        collection(store, "t")
        store.table("t").set(range(10), torch.ones(10, 4))
        store.checkpoint()
        store.table("t").delete(range(0, 10, 2))
        store.table("t").set([4], torch.full((1, 4), 7.0))
    with damo.EmbeddingStore(path) as store:
        collection(store, "t")
        assert len(store.table("t")) == 6
        assert {i: row[0] for i, row in all_items(store.table("t")).items()} == {
            1: 1.0,
            3: 1.0,
            4: 7.0,
            5: 1.0,
            7: 1.0,
            9: 1.0,
        }


# ------------------------------------------------------------------ items


@pytest.mark.parametrize("batch_size", [1, 3, 65536])
def test_items_come_in_signed_id_order(table, batch_size):
    ids = [0, INT64_MAX, -1, 7, INT64_MIN, 2**32, -(2**32), 1, INT64_MIN + 1]
    table.set(ids, filled([float(i) for i in range(len(ids))]))
    found = all_items(table, batch_size)
    assert list(found) == sorted(ids)
    assert next(iter(found)) == INT64_MIN
    assert all(found[i] == [float(position)] * 4 for position, i in enumerate(ids))


def test_items_are_a_snapshot_of_the_moment_the_iteration_begins(store, table):
    table.set(range(10), filled([float(i) for i in range(10)]))
    expected = all_items(table)
    iteration = table.items(batch_size=2)
    ids, weights = next(iteration)
    table.set([7, 20], filled([70.0, 20.0]))
    table.delete([8])
    store.flush()
    seen = dict(zip(ids.tolist(), weights.tolist(), strict=True))
    for ids, weights in iteration:
        seen.update(zip(ids.tolist(), weights.tolist(), strict=True))
    assert seen == expected
    assert list(all_items(table)) == [0, 1, 2, 3, 4, 5, 6, 7, 9, 20]


def test_items_of_a_table_are_its_own(store, table):
    table.set([1], filled([1.0]))
    store.table("other").set([INT64_MIN, INT64_MAX], filled([2.0, 3.0]))
    assert all_items(table) == {1: [1.0] * 4}
    assert list(all_items(store.table("other"))) == [INT64_MIN, INT64_MAX]


def test_items_refuse_a_batch_of_none(table):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(table.items(batch_size=0))


def test_a_batch_takes_no_more_memory_than_there_are_rows(table):
    table.set([1, 2, 3], filled([1.0, 2.0, 3.0]))
    (batch,) = table.items(batch_size=2**62)
    assert batch[0].tolist() == [1, 2, 3]


# ------------------------------------------------------------------ the sum of all, against a dict


def test_any_order_of_sets_deletes_and_updates_gives_what_a_dict_does(store):
    ebc = collection(store, "t", initial=1.0)
    table = store.table("t")
    generator = torch.Generator().manual_seed(0)
    expected: dict[int, float] = {}
    for step in range(200):
        ids = torch.randint(-30, 30, (int(torch.randint(0, 20, (), generator=generator)),), generator=generator)
        kind = step % 4
        if kind == 0:
            values = torch.randint(0, 100, (len(ids),), generator=generator).float()
            table.set(ids, values[:, None].expand(-1, 4))
            expected.update(zip(ids.tolist(), values.tolist(), strict=True))
        elif kind == 1:
            update(ebc, {"t": [[i] for i in ids.tolist()]})
            for i in ids.tolist():
                expected[i] = expected.get(i, 1.0) - 1.0
        elif kind == 2:
            table.delete(ids)
            for i in ids.tolist():
                expected.pop(i, None)
        else:
            assert table.get(ids)[:, 0].tolist() == [expected.get(i, 0.0) for i in ids.tolist()]
            assert table.contains(ids).tolist() == [i in expected for i in ids.tolist()]
        assert len(table) == len(expected)
    assert {i: row[0] for i, row in all_items(table).items()} == expected


# ------------------------------------------------------------------ wrong calls


WRONG_IDS = {
    "floats": (torch.tensor([1.0]), TypeError, r"of integers.*torch\.float32"),
    "two dimensions": (torch.tensor([[1]]), ValueError, r"shape \(n,\), got \(1, 1\)"),
    "bools": ([True], TypeError, "must be ints"),
    "text": (["1"], TypeError, "must be ints"),
    "an int": (1, TypeError, "got int"),
    "beyond 64 bits": ([2**63], ValueError, "must fit int64, got 9223372036854775808"),
}


@pytest.mark.parametrize(("ids", "error", "message"), WRONG_IDS.values(), ids=WRONG_IDS)
def test_wrong_ids_are_refused(table, ids, error, message):
    for call in (table.get, table.delete, table.contains, lambda i: table.set(i, torch.ones(1, 4))):
        with pytest.raises(error, match=message):
            call(ids)
    assert len(table) == 0


WRONG_WEIGHTS = {
    "another shape": (torch.ones(1, 5), ValueError, r"\(1, 4\), got \(1, 5\)"),
    "one dimension": (torch.ones(4), ValueError, r"got \(4,\)"),
    "ints": (torch.ones(1, 4, dtype=torch.int64), TypeError, "floating point tensor .* got a tensor of torch.int64"),
    "lists of two lengths": ([[1.0] * 4, [1.0]], ValueError, "lists of one length"),
    "nan": (torch.full((1, 4), float("nan")), ValueError, "finite"),
    "beyond float32": (torch.full((1, 4), 1e300, dtype=torch.float64), ValueError, "finite"),
}


@pytest.mark.parametrize(("weights", "error", "message"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights_are_refused(table, weights, error, message):
    with pytest.raises(error, match=message):
        table.set([1], weights)
    assert len(table) == 0


def test_a_table_that_is_not_open_is_a_key_error(store, table):
    with pytest.raises(KeyError, match=r"has no table 'x'; its tables are \['other', 't'\]"):
        store.table("x")
    assert store.tables() == {"t": table, "other": store.table("other")}
    assert (table.name, table.dim, table.iter) == ("t", 4, 0)
    assert rows_of(store) == {"t": {}, "other": {}}


def test_the_default_initializer_is_that_of_torchrec(store):
    """Uniform within ±1/√num_embeddings, as in TorchRec's own EmbeddingBagCollection."""
    ebc = collection(store, "default", dim=64)
    peer = torchrec.EmbeddingBagCollection(tables=ebc.embedding_bag_configs())
    ours = look_up(ebc, {"default": [[i] for i in range(100)]}).detach()
    theirs = peer.embedding_bags["default"].weight.detach()
    assert abs(ours.min() - theirs.min()) < 1e-3
    assert abs(ours.max() - theirs.max()) < 1e-3
    assert abs(ours.mean() - theirs.mean()) < 5e-3
