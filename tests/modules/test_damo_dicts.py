"""Damo-Embedding's dicts: which optimizer and initializer each names."""

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import Embedding
from optimizer_oracles import Oracle

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


def test_unknown_keys_and_keywords_warn(memory_store):
    with pytest.warns(UserWarning, match="optimizer 'sgd': momentum has no effect"):
        Embedding(4, optimizer={"name": "sgd", "momentum": 0.9}, store=memory_store)
    with pytest.warns(UserWarning, match="initializer 'ones': mean has no effect"):
        Embedding(4, 1, initializer={"name": "ones", "mean": 0.9}, store=memory_store)
    with pytest.warns(UserWarning, match="Embedding: dir, ttl has no effect"):
        Embedding(4, 2, store=memory_store, dir="x", ttl=3)


def test_ftrl_stays_finite_where_the_square_of_a_gradient_is_none(memory_store):
    embedding = Embedding(4, optimizer={"name": "ftrl"}, store=memory_store)
    (embedding(torch.tensor([1])).sum() * 1e-23).backward()
    assert bool(torch.isfinite(embedding(torch.tensor([1]))).all())
