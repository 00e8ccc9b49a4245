"""Update rules that torch has no counterpart of, against the formulas of their papers written in NumPy."""

import numpy as np
import pytest
import torch
import torchrec

import damo_torchrec as damo
from optimizer_oracles import DIM, compare

LR, EPS = 0.05, 1e-3
BETAS = (0.7, 0.9)
FBGEMM = {"lr": LR, "eps": EPS, "betas": BETAS, "weight_decay": 0.1}
AMSGRAD = {"amsgrad": True, "corrected_max": True}


def moments(state, g, second):
    state["m"] = BETAS[0] * state.get("m", 0) + (1 - BETAS[0]) * g
    state["v"] = BETAS[1] * state.get("v", 0) + (1 - BETAS[1]) * second
    return state["m"], state["v"]


def corrected(state, g, second, t):
    m, v = moments(state, g, second)
    return m / (1 - BETAS[0] ** t), v / (1 - BETAS[1] ** t)


def ratio(weights, step):
    a, b = np.linalg.norm(weights), np.linalg.norm(step)
    return a / b if a > 0 and b > 0 else 1.0


def partial_rowwise_adam(w, state, g, count, t):
    m, v = corrected(state, g, np.mean(g**2), t)
    return w - LR * (m / (np.sqrt(v) + EPS) + 0.1 * w)


def lamb(w, state, g, count, t):
    m, v = corrected(state, g, g**2, t)
    r = m / (np.sqrt(v) + EPS) + 0.1 * w
    return w - LR * ratio(w, r) * r


def partial_rowwise_lamb(w, state, g, count, t):
    m, v = corrected(state, g, np.mean(g**2), t)
    r = m / (np.sqrt(v) + EPS) + 0.1 * w
    return w - LR * ratio(w, r) * r


def lars(w, state, g, count, t):
    below = np.linalg.norm(g) + 0.1 * np.linalg.norm(w)
    local = 0.3 * np.linalg.norm(w) / below if below > 0 and np.linalg.norm(w) > 0 else 1.0
    state["m"] = 0.8 * state.get("m", 0) + LR * local * (g + 0.1 * w)
    return w - state["m"]


def ftrl(w, state, g, count, t, beta=0.5, lambda1=0.02, lambda2=0.3):
    n, z = state.get("n", np.zeros_like(g)), state.get("z", np.zeros_like(g))
    z = z + g - (np.sqrt(n + g**2) - np.sqrt(n)) / LR * w
    n = n + g**2
    state["n"], state["z"] = n, z
    with np.errstate(invalid="ignore"):
        new = -(z - np.sign(z) * lambda1) / ((beta + np.sqrt(n)) / LR + lambda2)
    return np.where(np.abs(z) <= lambda1, 0.0, new)


def lion(w, state, g, count, t):
    m = state.get("m", np.zeros_like(g))
    w = (1 - LR * 0.1) * w - LR * np.sign(0.9 * m + 0.1 * g)
    state["m"] = 0.99 * m + 0.01 * g
    return w


def sgd_with_dampening(w, state, g, count, t):
    state["b"] = g if count == 1 else 0.9 * state["b"] + 0.6 * g
    return w - LR * state["b"]


def adam_by_count(w, state, g, count, t):
    m, v = corrected(state, g, g**2, count)
    return w - LR * (m / (np.sqrt(v) + EPS) + 0.1 * w)


def amsgrad_of_corrected(w, state, g, count, t):
    m, v = corrected(state, g + 0.1 * w, (g + 0.1 * w) ** 2, t)
    state["u"] = np.maximum(state.get("u", 0), v)
    return w - LR * m / (np.sqrt(state["u"]) + EPS)


def amsgrad_of_corrected_by_count(w, state, g, count, t):
    return amsgrad_of_corrected(w, state, g, count, count)


def lamb_by_count(w, state, g, count, t):
    return lamb(w, state, g, count, count)


CASES = [
    (torchrec.optim.PartialRowWiseAdam, FBGEMM, partial_rowwise_adam),
    (torchrec.optim.LAMB, FBGEMM, lamb),
    (torchrec.optim.PartialRowWiseLAMB, FBGEMM, partial_rowwise_lamb),
    (torchrec.optim.LarsSGD, {"lr": LR, "momentum": 0.8, "eta": 0.3, "weight_decay": 0.1}, lars),
    (damo.optim.FTRL, {"lr": LR, "beta": 0.5, "lambda1": 0.02, "lambda2": 0.3}, ftrl),
    (damo.optim.Lion, {"lr": LR, "weight_decay": 0.1}, lion),
    (torch.optim.SGD, {"lr": LR, "momentum": 0.9, "dampening": 0.4}, sgd_with_dampening),
    (torchrec.optim.Adam, {**FBGEMM, "use_rowwise_bias_correction": True}, adam_by_count),
    (torchrec.optim.LAMB, {**FBGEMM, "use_rowwise_bias_correction": True}, lamb_by_count),
    (torch.optim.Adam, {**FBGEMM, **AMSGRAD}, amsgrad_of_corrected),
    (torch.optim.Adam, {**FBGEMM, **AMSGRAD, "use_rowwise_bias_correction": True}, amsgrad_of_corrected_by_count),
]


@pytest.mark.parametrize(
    ("optimizer_type", "kwargs", "rule"), CASES, ids=lambda value: getattr(value, "__name__", None)
)
def test_equals_the_papers_formula(any_store, optimizer_type, kwargs, rule):
    compare(any_store, optimizer_type, kwargs, rule, None)


@pytest.mark.parametrize("dim", [1, 3, 17, 64])
@pytest.mark.parametrize(("optimizer_type", "kwargs", "rule"), CASES[:6], ids=lambda v: getattr(v, "__name__", None))
def test_equals_the_papers_formula_at_any_dim(memory_store, optimizer_type, kwargs, rule, dim):
    compare(memory_store, optimizer_type, kwargs, rule, None, dim)


def test_ftrl_makes_weights_exactly_zero(memory_store):
    options = damo.TableOptions(initializer=damo.init.Normal())
    ebc = damo.EmbeddingBagCollection(
        [torchrec.EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["t"])],
        damo.optim.FTRL,
        {"lambda1": 1.0},
        store=memory_store,
        table_options={"t": options},
    )
    out = ebc(torchrec.KeyedJaggedTensor(["t"], torch.tensor([5]), lengths=torch.tensor([1]))).values()
    assert bool((out != 0).all())
    out.backward(torch.tensor([[1e-3, 0.0, -1e-3, 1e4]]))
    row = memory_store.table("t").get([5])[0]
    assert row[1] == 0
    assert row[3] != 0


@pytest.mark.parametrize(
    "optimizer_type", [torchrec.optim.LAMB, torchrec.optim.PartialRowWiseLAMB, torchrec.optim.LarsSGD]
)
def test_a_row_of_zeros_is_not_stuck_there(memory_store, optimizer_type):
    options = damo.TableOptions(initializer=damo.init.Constant(0.0))
    ebc = damo.EmbeddingBagCollection(
        [torchrec.EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["t"])],
        optimizer_type,
        store=memory_store,
        table_options={"t": options},
    )
    ebc(torchrec.KeyedJaggedTensor(["t"], torch.tensor([5]), lengths=torch.tensor([1]))).values().sum().backward()
    assert bool((memory_store.table("t").get([5]) < 0).all())


def clipped_sgd(by):
    """SGD as torch clips: each row is a parameter of its own."""

    def rule(w, state, g, count, t):
        parameter = torch.nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
        parameter.grad = torch.from_numpy(g.copy())
        by([parameter])
        return w - LR * parameter.grad.numpy()

    return rule


def by_value(parameters):
    torch.nn.utils.clip_grad_value_(parameters, 0.4)


def by_norm(parameters):
    torch.nn.utils.clip_grad_norm_(parameters, 0.9)


def by_both(parameters):
    by_value(parameters)
    by_norm(parameters)


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"clip_grad_value": 0.4}, by_value),
        ({"clip_grad_norm": 0.9}, by_norm),
        ({"clip_grad_value": 0.4, "clip_grad_norm": 0.9}, by_both),
    ],
)
def test_each_rows_gradient_is_clipped_as_torch_clips_a_parameters(any_store, options, by):
    rule = clipped_sgd(by)
    compare(any_store, torch.optim.SGD, {"lr": LR}, rule, None, options=damo.TableOptions(**options))


def test_fbgemms_gradient_clipping_is_by_value(memory_store):
    kwargs = {"lr": LR, "gradient_clipping": True, "max_gradient": 0.4}
    compare(memory_store, torchrec.optim.SGD, kwargs, clipped_sgd(by_value), None)


def test_tables_of_a_collection_may_have_optimizers_of_their_own(memory_store):
    configs = [
        torchrec.EmbeddingBagConfig(name=name, embedding_dim=DIM, num_embeddings=9, feature_names=[name])
        for name in "abc"
    ]
    ebc = damo.EmbeddingBagCollection(
        configs,
        torch.optim.SGD,
        {"lr": 1.0},
        store=memory_store,
        table_options={
            "b": damo.TableOptions(optimizer=(torch.optim.SGD, {"lr": 0.25})),
            "c": damo.TableOptions(optimizer=(torchrec.optim.Adam, {"lr": 0.5})),
        },
    )
    features = torchrec.KeyedJaggedTensor(["a", "b", "c"], torch.tensor([1, 1, 1]), lengths=torch.ones(3).long())
    before = ebc(features).values().detach().clone()
    ebc(features).values().sum().backward()
    moved = (before - ebc(features).values().detach()).view(3, DIM)
    torch.testing.assert_close(moved, torch.tensor([[1.0], [0.25], [0.5]]).expand(3, DIM), rtol=1e-5, atol=1e-6)
    assert [group["lr"] for group in ebc.fused_optimizer.param_groups] == [1.0, 0.25, 0.5]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["clip_grad_value", "clip_grad_norm"])
def test_a_limit_has_to_be_positive_and_finite(name, limit):
    with pytest.raises(ValueError, match=name):
        damo.TableOptions(**{name: limit})


@pytest.mark.parametrize("optimizer_class", [damo.optim.FTRL, damo.optim.Lion])
def test_the_classes_cannot_step_a_dense_parameter(optimizer_class):
    optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(NotImplementedError, match="optimizer_type"):
        optimizer.step()
