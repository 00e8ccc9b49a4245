"""`Embedding`: Damo-Embedding's module, dicts and start-up, and programs written against them."""

import warnings

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec import Embedding
from optimizer_oracles import Oracle
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
    embedding = Embedding(4, optimizer={"name": "sgd", "gamma": 0.5, "lambda": 0.0}, store=memory_store)
    ids = torch.tensor([[0, 1, 1], [2, 0, 0]])
    with torch.no_grad():
        theirs = nn.Embedding.from_pretrained(embedding(torch.arange(3)), freeze=False)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    grad = torch.randn(2, 3, 4)
    for module in (embedding, theirs):
        (module(ids) * grad).sum().backward()
    optimizer.step()
    torch.testing.assert_close(embedding(torch.arange(3)).detach(), theirs.weight.detach())


def test_groups_are_tables_and_modules_of_one_group_share_rows(memory_store):
    a, b, c = (Embedding(2, group=g, store=memory_store, optimizer={"name": "sgd", "gamma": 1.0}) for g in (1, 1, 255))
    a(torch.tensor([7])).sum().backward()
    assert torch.equal(a(torch.tensor([7])), b(torch.tensor([7])))
    assert [len(memory_store.table(f"group_{g}_dim_2")) for g in (1, 255)] == [1, 0]
    assert c.group == 255


@pytest.mark.parametrize("group", [-1, 256])
def test_a_group_out_of_range_is_refused(group):
    with pytest.raises(ValueError, match=f"group must be in 0..255, got {group}"):
        Embedding(4, group=group)


ORACLES = {
    "sgd": (torch.optim.SGD, {"gamma": "lr", "lambda": "weight_decay"}, {"lr": 1e-3}),
    "adagrad": (
        torch.optim.Adagrad,
        {"gamma": "lr", "lambda": "weight_decay", "eta": "lr_decay", "epsilon": "eps"},
        {"lr": 1e-2, "eps": 1e-10},
    ),
    "adam": (torch.optim.Adam, {"gamma": "lr", "lambda": "weight_decay", "epsilon": "eps"}, {"lr": 1e-3}),
    "amsgrad": (
        torch.optim.Adam,
        {"gamma": "lr", "lambda": "weight_decay", "epsilon": "eps"},
        {"lr": 1e-3, "amsgrad": True},
    ),
    "adamw": (torch.optim.AdamW, {"gamma": "lr", "lambda": "weight_decay", "epsilon": "eps"}, {"lr": 1e-3}),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_a_dict_names_torchs_optimizer(memory_store, name, given):
    oracle_type, names, kwargs = ORACLES[name]
    numbers = dict.fromkeys(names, 0.05) if given else {}
    embedding = Embedding(4, optimizer={"name": name, **numbers}, store=memory_store)
    ids = torch.arange(6)
    with torch.no_grad():
        oracle = Oracle(embedding(ids), oracle_type, {**kwargs, **{names[key]: v for key, v in numbers.items()}})
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        grad = torch.randn(6, 4, generator=generator)
        embedding(ids).backward(grad)
        oracle.step(grad.double(), torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(embedding(ids).detach().double(), oracle.weight.detach(), rtol=1e-5, atol=1e-7)


def test_ftrl_and_lion_take_their_keys(memory_store):
    ftrl = {"name": "ftrl", "alpha": 0.1, "beta": 1.0, "lambda1": 0.5, "lambda2": 0.1}
    lion = {"name": "lion", "eta": 0.1, "beta1": 0.9, "beta2": 0.99, "lambda": 0.0}
    a = Embedding(2, 1, optimizer=ftrl, store=memory_store)
    b = Embedding(2, 2, optimizer=lion, store=memory_store)
    ids = torch.tensor([5])
    before = b(ids).detach().clone()
    a(ids).backward(torch.tensor([[1.0, 0.1]]))
    b(ids).backward(torch.tensor([[3.0, -0.2]]))
    # By the papers' formulas: n = g², z = g - |g| / alpha · w for FTRL; steps of one size for Lion.
    torch.testing.assert_close(b(ids).detach() - before, torch.tensor([[-0.1, 0.1]]))
    assert a.optimizer_type() is damo.optim.FTRL
    assert a.optimizer_kwargs() == {"lr": 0.1, "beta": 1.0, "lambda1": 0.5, "lambda2": 0.1}
    assert len(memory_store.table("group_1_dim_2")) == 1


@pytest.mark.parametrize(
    ("initializer", "check"),
    [
        ({"name": "zeros"}, lambda w: (w == 0).all()),
        ({"name": "ones"}, lambda w: (w == 1).all()),
        ({"name": "uniform"}, lambda w: w.abs().max() <= 0.25 and w.std() > 0.1),
        ({"name": "uniform", "min": 3.0, "max": 4.0}, lambda w: w.min() >= 3 and w.max() <= 4),
        ({"name": "random_uniform", "min": -1, "max": 1}, lambda w: 0.9 < w.abs().max() <= 1),
        (
            {"name": "random", "mean": 2.0, "stddev": 0.5},
            lambda w: abs(w.mean() - 2) < 0.1 and abs(w.std() - 0.5) < 0.1,
        ),
        ({"name": "normal"}, lambda w: abs(w.mean()) < 0.1 and abs(w.std() - 1) < 0.1),
        ({"name": "random_normal"}, lambda w: abs(w.mean()) < 0.1 and abs(w.std() - 1) < 0.1),
        ({"name": "truncate_normal", "mean": 1.0, "stddev": 0.1}, lambda w: (w - 1).abs().max() <= 0.2),
        ({"name": "xavier"}, lambda w: 0.4 < w.abs().max() <= (3 / 16) ** 0.5),
        (damo.init.Constant(5.0), lambda w: (w == 5).all()),
        (None, lambda w: w.abs().max() <= 0.25 and w.std() > 0.1),
    ],
    ids=lambda value: "weights" if callable(value) else str(value),
)
def test_a_dict_names_an_initializer(memory_store, initializer, check):
    assert bool(check(Embedding(16, initializer=initializer, store=memory_store)(torch.arange(200)).detach()))


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(ValueError, match=r"optimizer's name must be one of sgd, .*got 'rmsprop'"):
        Embedding(4, optimizer={"name": "rmsprop"})
    with pytest.raises(ValueError, match=r"initializer's name must be one of zeros, .*got 'he'"):
        Embedding(4, initializer={"name": "he"})
    with pytest.raises(TypeError, match=r"initializer must be a dict or one of damo.init's, got int"):
        Embedding(4, initializer=3)


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"dim": 2.5}, TypeError, "dim must be an int, got 2.5"),
        ({"group": "a"}, TypeError, "group must be an int, got 'a'"),
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


def test_unknown_keys_and_keywords_warn(memory_store):
    with pytest.warns(UserWarning, match="optimizer 'sgd': momentum has no effect"):
        Embedding(4, optimizer={"name": "sgd", "momentum": 0.9}, store=memory_store)
    with pytest.warns(UserWarning, match="initializer 'ones': mean has no effect"):
        Embedding(4, 1, initializer={"name": "ones", "mean": 0.9}, store=memory_store)
    with pytest.warns(UserWarning, match="Embedding: dir, ttl has no effect"):
        Embedding(4, 2, store=memory_store, dir="x", ttl=3)


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
    assert {name: len(table) for name, table in default.tables().items()} == {"group_0_dim_1": 48, "group_0_dim_8": 48}


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


def test_damo_embedding_init_warns_of_a_ttl_and_refuses_a_model_in_use(default, tmp_path):
    model = Model()
    with pytest.warns(UserWarning, match="ttl=3600 has no effect"):
        store = damo.damo_embedding_init(model, tmp_path / "a", 3600)
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
    model = nn.ModuleList([Embedding(4, optimizer={"name": "sgd"}), Embedding(4, optimizer={"name": "adam"})])
    with pytest.raises(damo.SchemaMismatchError):
        damo.damo_embedding_init(model, tmp_path / "a")
    with damo.damo_embedding_init(model[:1], tmp_path / "b") as store:
        assert model[0].store is store


def test_ftrl_stays_finite_where_the_square_of_a_gradient_is_none(memory_store):
    embedding = Embedding(4, optimizer={"name": "ftrl"}, store=memory_store)
    (embedding(torch.tensor([1])).sum() * 1e-23).backward()
    assert bool(torch.isfinite(embedding(torch.tensor([1]))).all())
