"""docs/design.md, "Semantics of a row": which backward calls make which updates."""

import pytest
import torch
import torchrec
from torch.utils.checkpoint import checkpoint
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from mixed_run import assert_same_rows, collection, look_up, rows_of, update
from support import config, kjt


@pytest.fixture
def store():
    with damo.EmbeddingStore(options=damo.StoreOptions(num_threads=2)) as opened:
        yield opened


# ------------------------------------------------------------------ iter and step


def test_iter_rises_once_per_applied_backward_that_involves_the_table(store):
    both = collection(store, "a", "b")
    alone = collection(store, "c")
    update(both, {"a": [[1, 1], [2]], "b": [[1], [1]]})
    update(both, {"a": [[], []], "b": [[3], []]})  # empty bags too
    update(both, {"a": [], "b": []})  # and empty batches
    update(alone, {"c": [[1]]})
    look_up(both, {"a": [[1]], "b": [[1]]})
    assert {name: table.iter for name, table in store.tables().items()} == {"a": 3, "b": 3, "c": 1}
    assert store.step == 3


def test_step_is_the_largest_iter_also_of_tables_that_are_not_open(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        for _ in range(3):
            update(collection(store, "a"), {"a": [[1]]})
    with damo.EmbeddingStore(tmp_path / "store") as store:
        assert store.step == 3
        update(collection(store, "b"), {"b": [[1]]})
        assert store.step == 3
        assert store.table("b").iter == 1


def test_iter_drives_the_bias_correction_of_rows_whenever_they_come(store):
    """A row whose first update is the table's third is corrected for three."""
    ebc = collection(store, "t", initial=0.0, optimizer=torch.optim.Adam, lr=0.1)
    for i in (1, 1, 2):
        update(ebc, {"t": [[i]]})
    m, v = 0.1 / (1 - 0.9**3), 0.001 / (1 - 0.999**3)
    torch.testing.assert_close(store.table("t").get([2])[0], torch.full((4,), -0.1 * m / (v**0.5 + 1e-8)))


# ------------------------------------------------------------------ accumulate


@pytest.mark.parametrize("optimizer", [torchrec.optim.SGD, torch.optim.Adam, torchrec.optim.RowWiseAdagrad])
def test_accumulate_makes_one_update_of_the_sum(store, optimizer):
    """As one backward of the sum of the losses does, in a table that starts with the same rows."""
    several = collection(store, "several", initial=1.0, optimizer=optimizer)
    one = collection(store, "one", initial=1.0, optimizer=optimizer)
    batches = [[[1], [2, 2]], [[2], [3]], [[], [1]]]
    for _ in range(2):
        store.accumulate(3)
        for number, bags in enumerate(batches):
            assert store.table("several").iter == store.table("one").iter
            update(several, {"several": bags}, gradient=2.0**number)
        store.accumulate(1)
        scale = torch.tensor([1.0, 1.0, 2.0, 2.0, 4.0, 4.0])[:, None].expand(6, 4)
        look_up(one, {"one": [bag for bags in batches for bag in bags]}).backward(scale)
        assert store.table("several").iter == store.table("one").iter
    rows = rows_of(store)
    assert_same_rows({"t": rows["several"]}, {"t": rows["one"]})


def test_gradients_that_wait_change_nothing_and_refuse_a_checkpoint(store):
    ebc = collection(store, "t")
    update(ebc, {"t": [[1]]})
    before = rows_of(store)
    store.accumulate(2)
    update(ebc, {"t": [[1]]})
    assert rows_of(store) == before
    assert store.step == 1
    with pytest.raises(ValueError, match=r"in the middle of accumulate\(2\)"):
        store.checkpoint()
    with pytest.raises(ValueError, match=r"in the middle of accumulate\(2\)"):
        store.accumulate(1)
    update(ebc, {"t": [[1]]})
    store.accumulate(1)
    assert store.step == 2


def test_accumulated_gradients_may_be_changed_after_their_backward(store):
    ebc = collection(store, "t", initial=0.0)
    store.accumulate(2)
    for _ in range(2):
        gradient = torch.ones(1, 4)
        look_up(ebc, {"t": [[1]]}).backward(gradient)
        gradient.fill_(100.0)
    assert store.table("t").get([1])[0].tolist() == [-2.0] * 4


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_gradient_that_is_not_finite_drops_the_accumulation_that_it_is_in(store, faulty):
    ebc = collection(store, "t", initial=0.0)
    store.accumulate(2)

    def two_calls(gradients):
        for gradient in gradients:
            update(ebc, {"t": [[1]]}, gradient)

    with pytest.raises(damo.NonFiniteGradientError):
        two_calls([float("nan") if i == faulty else 1.0 for i in range(2)])
    assert len(store.table("t")) == 0
    store.accumulate(2)  # nothing waits
    two_calls([1.0, 1.0])
    assert store.table("t").get([1])[0, 0] == -2.0


def test_accumulate_refuses_less_than_one(store):
    with pytest.raises(ValueError, match="n >= 1, got 0"):
        store.accumulate(0)


# ------------------------------------------------------------------ several backwards


def test_backward_through_a_graph_that_is_kept_updates_each_time(store):
    ebc = collection(store, "t", initial=0.0)
    loss = look_up(ebc, {"t": [[1]]}).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert store.table("t").get([1])[0, 0] == -2.0
    assert store.step == 2


def test_a_learning_rate_holds_from_the_next_backward(store):
    ebc = collection(store, "t", initial=0.0)
    output = look_up(ebc, {"t": [[1]]})
    ebc.fused_optimizer.param_groups[0]["lr"] = 0.25
    output.sum().backward()
    assert store.table("t").get([1])[0, 0] == -0.25


# ------------------------------------------------------------------ what a graph holds on to


def test_a_batch_that_was_changed_between_forward_and_backward_is_refused_whole(store):
    ebc = collection(store, "a", "b")
    update(ebc, {"a": [[1]], "b": [[1]]})
    before = rows_of(store)
    batch = kjt({"a": [[1]], "b": [[2]]})
    output = ebc(batch).values()
    batch.values()[1] = 5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
    assert rows_of(store) == before


def test_the_batch_may_go_before_backward_whatever_hooks_do_with_saved_tensors(store):
    """With int32 ids the tensor that was looked up is a copy of the caller's."""
    ebc = collection(store, "t", initial=0.0)
    batch = kjt({"t": [[i] for i in range(1000)]})
    small = torchrec.KeyedJaggedTensor(["t"], batch.values().int(), lengths=batch.lengths().int())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor):
        output = ebc(small).values()
    del batch, small
    store.table("t").delete([0])  # the rows have to be found again
    look_up(ebc.eval(), {"t": [[i] for i in range(5000, 6000)]})
    output.sum().backward()
    assert store.table("t").contains(range(1000)).all()
    assert (store.table("t").get(range(1000)) == -1).all()
    assert len(store.table("t")) == 1000


def test_a_large_output_can_be_changed_in_place(store):
    ebc = collection(store, "t", dim=64, initial=-1.0)
    output = look_up(ebc, {"t": [[i] for i in range(8192)]})
    output.mul_(2).relu_()
    output.sum().backward()
    assert (store.table("t").get([0, 8191]) == -1).all(), "the gradient of relu is 0 there"
    assert len(store.table("t")) == 8192


def test_a_scale_that_turns_zero_gradients_into_nan_raises(store):
    ebc = collection(store, "t", initial=0.0)
    store.grad_scale = 1e-39
    with pytest.raises(damo.NonFiniteGradientError, match='table "t", id 1'):
        update(ebc, {"t": [[1]]}, 0.0)
    assert len(store.table("t")) == 0


def test_gradients_that_wait_have_their_batch_whatever_hooks_do_with_saved_tensors(store):
    """Checkpointed activations compute ids and weights anew for each backward, and drop them."""
    ebc = damo.EmbeddingBagCollection([config("w", 4)], torch.optim.SGD, {"lr": 1.0}, is_weighted=True, store=store)
    store.accumulate(2)

    def forward(ids, weights):
        features = KeyedJaggedTensor(["w"], ids.int(), weights.double(), lengths=torch.ones(2, dtype=torch.int32))
        return ebc(features).values().sum()

    start = ebc(KeyedJaggedTensor(["w"], torch.tensor([7]), torch.ones(1), lengths=torch.ones(1).long())).values()
    for _ in range(2):
        weights = torch.ones(2, requires_grad=True)
        checkpoint(forward, torch.tensor([7, 8]), weights, use_reentrant=False).backward()
    torch.testing.assert_close(store.table("w").get([7]), start.detach() - 2)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_batch_that_is_changed_while_its_gradient_waits_is_refused(store, scale):
    ebc = damo.EmbeddingBagCollection([config("w", 4)], torch.optim.SGD, {"lr": 1.0}, is_weighted=True, store=store)
    store.accumulate(2)
    weights, ids = torch.ones(1), torch.tensor([7])
    features = KeyedJaggedTensor(["w"], ids, weights, lengths=torch.ones(1).long())
    ebc(features).values().sum().backward()
    weights.fill_(10)
    store.grad_scale = scale
    with pytest.raises(RuntimeError, match="changed in place before its rows were updated"):
        ebc(features).values().sum().backward()
    assert store.step == 0
