"""`Embedding`: Damo-Embedding's module and start-up, and programs written against them."""

import warnings

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec import Embedding
from support import small_store


@pytest.fixture
def default(tmp_path):
    """A default store of its own for this test."""
    with small_store(tmp_path / "default") as store:
        damo.set_default_store(store)
        yield store


def test_ids_of_any_shape_give_rows(memory_store):
    embedding = Embedding(4, store=memory_store)
    ids = torch.tensor([[3, -4, 3], [2**62, 0, 3]])
    rows = embedding(ids)
    assert rows.shape == (2, 3, 4)
    assert torch.equal(rows[0, 0], rows[0, 2])
    assert torch.equal(embedding(ids.flatten()), rows.view(6, 4))
    assert embedding(torch.empty(0, 5, dtype=torch.int64)).shape == (0, 5, 4)
    assert embedding(torch.tensor(3)).shape == (4,)
    rows.sum().backward()
    assert len(memory_store.table("group_0_dim_4")) == 4


def test_it_trains_like_torchs_embedding(memory_store):
    optimizer = {"name": "sgd", "gamma": 0.5, "lambda": 0.0}
    embedding = Embedding(4, optimizer=optimizer, grad="sum", store=memory_store)
    ids = torch.tensor([[0, 1, 1], [2, 0, 0]])
    with torch.no_grad():
        theirs = nn.Embedding.from_pretrained(embedding(torch.arange(3)), freeze=False)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    grad = torch.randn(2, 3, 4)
    for module in (embedding, theirs):
        (module(ids) * grad).sum().backward()
    optimizer.step()
    torch.testing.assert_close(embedding(torch.arange(3)).detach(), theirs.weight.detach())


@pytest.mark.parametrize(
    ("ids", "step"),
    [([[7, 1], [7, 2], [3, 4], [5, 6]], 2 / 4), ([7, 7, 7, 1, 2], 3 / 5), (7, 1.0)],
    ids=["(batch, ids)", "(batch,)", "()"],
)
def test_a_rows_gradient_is_divided_by_the_batch_size(memory_store, ids, step):
    embedding = Embedding(2, initializer={"name": "zeros"}, optimizer={"name": "sgd", "gamma": 1.0}, store=memory_store)
    out = embedding(torch.tensor(ids))
    assert embedding.grad == "mean"
    out.sum().backward()
    torch.testing.assert_close(embedding(torch.tensor([7])).detach(), torch.full((1, 2), -step))


def test_what_is_done_in_place_reaches_the_rows(memory_store):
    embedding = Embedding(2, initializer={"name": "ones"}, optimizer={"name": "sgd", "gamma": 1.0}, store=memory_store)
    embedding(torch.tensor([[7], [8]])).mul_(3).relu_().sum().backward()
    torch.testing.assert_close(embedding(torch.tensor([7, 8])).detach(), torch.full((2, 2), 1 - 3 / 2))


def test_gradients_of_what_is_not_there_are_none(memory_store):
    embedding = Embedding(2, store=memory_store)
    embedding(torch.empty(0, 3, dtype=torch.int64)).sum().backward()
    assert not embedding.eval()(torch.tensor([[1]])).requires_grad
    with pytest.raises(ValueError, match="grad must be 'mean' or 'sum', got 'avg'"):
        Embedding(2, grad="avg")


def test_groups_are_tables_and_modules_of_one_group_share_rows(memory_store):
    a, b, c = (Embedding(2, group=g, store=memory_store, optimizer={"name": "sgd", "gamma": 1.0}) for g in (1, 1, 255))
    a(torch.tensor([7])).sum().backward()
    assert torch.equal(a(torch.tensor([7])), b(torch.tensor([7])))
    assert [len(memory_store.table(f"group_{g}_dim_2")) for g in (1, 255)] == [1, 0]
    assert c.group == 255


@pytest.mark.parametrize("group", [-2, 65536])
def test_a_group_out_of_range_is_refused(group):
    with pytest.raises(ValueError, match=f"group must be in 0..65535, got {group}"):
        Embedding(4, group=group)


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"dim": 2.5}, TypeError, "dim must be an int, got 2.5"),
        ({"group": "a"}, TypeError, "group must be an int or None, got 'a'"),
        ({"dim": 0}, ValueError, "embedding_dim must be positive, got 0"),
        ({"padding_idx": 0.5}, TypeError, "padding_idx must be an int or None, got 0.5"),
        ({"optimizer": {"name": ["x"]}}, ValueError, "optimizer's name must be one of"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be a dict or .*got 'adam'"),
        ({"optimizer": {"name": "adam", "gamma": "x"}}, ValueError, "lr must be a number, got 'x'"),
        ({"initializer": {"name": "normal", "mean": "x"}}, ValueError, "mean must be a number, got 'x'"),
    ],
)
def test_wrong_arguments_are_refused(memory_store, arguments, error, what):
    with pytest.raises(error, match=what):
        Embedding(**{"dim": 2, "store": memory_store, **arguments})


def test_padding_reads_zeros_and_has_no_row(memory_store):
    embedding = Embedding(2, store=memory_store, padding_idx=0, initializer={"name": "ones"})
    ids = torch.tensor([[0, 5], [0, 0]])
    rows = embedding(ids)
    assert rows.tolist() == [[[0, 0], [1, 1]], [[0, 0], [0, 0]]]
    rows.sum().backward()
    assert memory_store.table("group_0_dim_2").contains([0, 5]).tolist() == [False, True]
    assert bool((Embedding(2, 1, store=memory_store, initializer={"name": "ones"})(torch.tensor([0])) == 1).all())


def test_wrong_ids_are_refused(memory_store):
    embedding = Embedding(2, store=memory_store)
    with pytest.raises(TypeError, match=r"ids must be int64 or int32, got torch.float32"):
        embedding(torch.rand(2, 3))
    with pytest.raises(TypeError, match="ids must be a tensor, got list"):
        embedding([1, 2])


class Model(nn.Module):
    """As Damo-Embedding's documentation makes one: without a store."""

    def __init__(self):
        super().__init__()
        self.w = Embedding(1, initializer={"name": "truncate_normal", "mean": 0.0, "stddev": 0.0001})
        self.v = Embedding(8, optimizer={"name": "adam", "gamma": 0.01})
        self.linear = nn.Linear(24, 1)

    def forward(self, ids):
        return torch.sigmoid(self.w(ids).sum(1) + self.linear(self.v(ids).flatten(1)))


def test_a_program_without_a_store_trains_in_the_default_one(default):
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ids = torch.randint(-(2**62), 2**62, (16, 3))
    labels = torch.rand(16, 1).round()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy(model(ids), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    assert {name: len(table) for name, table in default.tables().items()} == {"group_0_dim_1": 48, "group_1_dim_8": 48}


def test_damo_embedding_init_puts_the_rows_into_workdir(default, tmp_path):
    model = Model()
    store = damo.damo_embedding_init(model, tmp_path / "work")
    assert damo.default_store() is store
    assert model.w.store is model.v.store is store
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    expected = model.v(torch.tensor([1])).detach()
    store.close()
    again = Model()
    with damo.damo_embedding_init(again, str(tmp_path / "work")):
        assert torch.equal(again.v(torch.tensor([1])).detach(), expected)


def test_damo_embedding_init_refuses_a_model_in_use(default, tmp_path):
    model = Model()
    store = damo.damo_embedding_init(model, tmp_path / "a")
    with store, pytest.raises(ValueError, match=r"has its rows in .*a already"):
        damo.damo_embedding_init(model, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_saved_and_loaded_with_the_model(default, tmp_path):
    model = Model()
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    expected = model(torch.tensor([[1, 2, 9]])).detach()
    damo.save_model(model, tmp_path / "saved")
    with small_store(tmp_path / "other") as other, warnings.catch_warnings():
        damo.set_default_store(other)
        again = damo.load_model(tmp_path / "saved", Model())
        assert torch.equal(again(torch.tensor([[1, 2, 9]])).detach(), expected)


def test_loading_a_state_dict_opens_no_store(tmp_path):
    with small_store(tmp_path / "a") as store:
        state = Embedding(8, optimizer={"name": "adam", "gamma": 0.01}, store=store).state_dict()
    later = Model()
    later.v.load_state_dict(state)
    with damo.damo_embedding_init(later, tmp_path / "b") as store:
        assert later.v.store is store


def test_damo_embedding_init_that_fails_can_be_tried_again(tmp_path):
    model = nn.ModuleList([Embedding(4, 0, optimizer={"name": name}) for name in ("sgd", "adam")])
    with pytest.raises(ValueError, match="group 0 and dim 4 are over the same rows, which have one optimizer"):
        damo.damo_embedding_init(model, tmp_path / "a")
    with damo.damo_embedding_init(model[:1], tmp_path / "b") as store:
        assert model[0].store is store
