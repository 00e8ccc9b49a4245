"""Damo-Embedding's dicts: which optimizer and initializer each names."""

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import Embedding
from optimizer_oracles import Oracle
from support import small_store

ORACLES = {
    "sgd": (torch.optim.SGD, {"gamma": "lr", "lambda": "weight_decay"}, {"lr": 1e-3}),
    "adagrad": (
        torch.optim.Adagrad,
        {"gamma": "lr", "lambda": "weight_decay", "eta": "lr_decay", "epsilon": "eps"},
        {"lr": 1e-2, "eps": 1e-10},
    ),
    "adam": (torch.optim.Adam, {"gamma": "lr", "lambda": "weight_decay", "epsilon": "eps"}, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"gamma": "lr", "lambda": "weight_decay", "epsilon": "eps"}, {"lr": 1e-3}),
}


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("name", ORACLES)
def test_a_dict_names_torchs_optimizer(memory_store, name, given):
    oracle_type, names, kwargs = ORACLES[name]
    numbers = dict.fromkeys(names, 0.05) if given else {}
    embedding = Embedding(4, optimizer={"name": name, **numbers}, grad="sum", store=memory_store)
    ids = torch.arange(6)
    with torch.no_grad():
        oracle = Oracle(embedding(ids), oracle_type, {**kwargs, **{names[key]: v for key, v in numbers.items()}})
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        grad = torch.randn(6, 4, generator=generator)
        embedding(ids).backward(grad)
        oracle.step(grad.double(), torch.ones(6, dtype=torch.bool))
    torch.testing.assert_close(embedding(ids).detach().double(), oracle.weight.detach(), rtol=1e-5, atol=1e-7)


def test_amsgrad_takes_the_maximum_after_the_correction_of_the_rows_own_count(memory_store):
    embedding = Embedding(
        2, optimizer={"name": "amsgrad", "gamma": 0.1, "beta1": 0.7, "beta2": 0.8}, grad="sum", store=memory_store
    )
    for _ in range(100):
        embedding(torch.tensor([1])).sum().backward()  # of another row
    ids = torch.tensor([7])
    w = embedding(ids).detach().double().numpy()
    m = v = most = np.zeros((1, 2))
    for t, g in enumerate(np.array([[1.0, -0.5], [0.1, 0.2], [-0.3, 4.0], [0.0, 0.01]]), start=1):
        embedding(ids).backward(torch.from_numpy(g)[None].float())
        m, v = 0.7 * m + 0.3 * g, 0.8 * v + 0.2 * g**2
        most = np.maximum(most, v / (1 - 0.8**t))
        w = w - 0.1 * m / (1 - 0.7**t) / (np.sqrt(most) + 1e-8)
    np.testing.assert_allclose(embedding(ids).detach().numpy(), w, rtol=1e-5)


def test_a_table_of_corrected_maxima_is_no_table_of_torchs(tmp_path):
    amsgrad = {"name": "amsgrad", "gamma": 0.1}
    with small_store(tmp_path / "store") as store:
        Embedding(2, 1, optimizer=amsgrad, store=store)(torch.tensor([3])).sum().backward()
        row = store.table("group_1_dim_2").get([3])
    with small_store(tmp_path / "store") as store:
        assert torch.equal(store.table("group_1_dim_2").get([3]), row)  # by the stored schema
    with small_store(tmp_path / "store") as store:
        torchs = (torch.optim.Adam, {"lr": 0.1, "amsgrad": True})
        with pytest.raises(damo.SchemaMismatchError, match=r"has optimizer .*corrected_max"):
            Embedding(2, 1, optimizer=torchs, store=store)
        assert torch.equal(Embedding(2, 1, optimizer=amsgrad, store=store)(torch.tensor([3])).detach(), row)


def test_corrected_max_is_an_option_of_amsgrad():
    with pytest.raises(ValueError, match="corrected_max is an option of AMSGrad, got it with ADAM"):
        Embedding(2, optimizer=(torch.optim.Adam, {"corrected_max": True}))


@pytest.mark.parametrize("name", ["adam", "adamw", "amsgrad"])
def test_the_first_step_of_a_row_is_of_the_learning_rate_whenever_it_comes(memory_store, name):
    optimizer = {"name": name, "gamma": 0.1, "lambda": 0.0}
    embedding = Embedding(2, optimizer=optimizer, initializer={"name": "ones"}, store=memory_store)
    for _ in range(300):
        embedding(torch.tensor([1])).sum().backward()
    embedding(torch.tensor([2])).sum().backward()
    torch.testing.assert_close(embedding(torch.tensor([2])).detach(), torch.full((1, 2), 0.9))


def test_two_keys_for_one_number_are_refused():
    for optimizer, keys in (
        ({"name": "lion", "eta": 0.1, "gamma": 0.1}, "eta and gamma"),
        ({"name": "ftrl", "alpha": 0.1, "gamma": 0.2}, "alpha and gamma"),
    ):
        with pytest.raises(ValueError, match=f"{keys} are both its lr: give one of them"):
            Embedding(4, optimizer=optimizer)
    Embedding(4, optimizer={"name": "adagrad", "eta": 0.1, "gamma": 0.1})  # a decay, and a rate


def test_ftrl_and_lion_take_their_keys(memory_store):
    ftrl = {"name": "ftrl", "alpha": 0.1, "beta": 1.0, "lambda1": 0.5, "lambda2": 0.1}
    lion = {"name": "lion", "eta": 0.1, "beta1": 0.9, "beta2": 0.99, "lambda": 0.0}
    a, b = (Embedding(2, group, optimizer=o, store=memory_store) for group, o in ((1, ftrl), (2, lion)))
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
        ({"name": "random_uniform", "min": -0.5}, lambda w: -0.5 <= w.min() < -0.45 and 0.9 < w.max() <= 1),
        ({"name": "random_uniform"}, lambda w: 0.99 < w.abs().max() <= 1 and abs(w.mean()) < 0.1),
        ({}, lambda w: 0.2 < w.abs().max() <= 0.25 and w.std() > 0.1),
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
