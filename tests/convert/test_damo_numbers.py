"""`Embedding` and Damo-Embedding 1.1.12 side by side: the same gradients make the same rows.

What docs/damo_embedding.md says of 1.1.12's numbers where they are others than ours is checked here, too.
"""

import pytest
import torch

from damo_torchrec import Embedding

pytestmark = pytest.mark.slow  # pip installs the wheel first

DIM = 3
OTHERS = {"gamma": 0.1, "beta1": 0.7, "beta2": 0.8, "lambda": 0.05, "epsilon": 0.01}
OPTIMIZERS = [
    {"name": "sgd"},
    {"name": "sgd", "gamma": 0.1, "lambda": 0.2},
    {"name": "adagrad"},
    {"name": "adagrad", "gamma": 0.1, "lambda": 0.2, "epsilon": 0.3},
    {"name": "adam"},
    {"name": "adam", **OTHERS},
    {"name": "adamw"},
    {"name": "adamw", **OTHERS},
    {"name": "amsgrad"},
    {"name": "amsgrad", **OTHERS},
    {"name": "ftrl"},
    {"name": "ftrl", "alpha": 0.1, "beta": 0.5, "lambda1": 0.001, "lambda2": 0.2},
    {"name": "lion"},
    {"name": "lion", "eta": 0.1, "beta1": 0.7, "beta2": 0.8, "lambda": 0.05},
]


def embeddings_of(*optimizers, initializer=None):
    return [
        {"dim": DIM, "group": group, "initializer": initializer or {"name": "ones"}, "optimizer": optimizer}
        for group, optimizer in enumerate(optimizers)
    ]


def gradients(keys, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(keys), DIM, generator=generator) * 2.0 ** ((seed % 5) - 2)


# Rows that come often, seldom and late, several of them in a push.
STEPS = [[1], [1, -5], [1], [2**62, 1], [-5], [1], *[[1]] * 20, [7, 1], [7], [-(2**63), -5]]


@pytest.fixture(scope="module")
def theirs(damo_embedding):
    steps = [(keys, gradients(keys, step).tolist()) for step, keys in enumerate(STEPS)]
    pushes = [[group, *step] for group in range(len(OPTIMIZERS)) for step in steps]
    results = damo_embedding(embeddings_of(*OPTIMIZERS), pushes)
    return [results[group * len(STEPS) : (group + 1) * len(STEPS)] for group in range(len(OPTIMIZERS))]


@pytest.mark.parametrize("group", range(len(OPTIMIZERS)), ids=lambda group: str(OPTIMIZERS[group]))
def test_each_optimizers_steps_are_those_of_1_1_12(memory_store, theirs, group):
    embedding = Embedding(DIM, group, {"name": "ones"}, OPTIMIZERS[group], grad="sum", store=memory_store)
    for step, keys in enumerate(STEPS):
        ids = torch.tensor(keys)
        before, after = (torch.tensor(weights) for weights in theirs[group][step])
        out = embedding(ids)
        torch.testing.assert_close(out.detach(), before, rtol=2e-5, atol=1e-6)
        out.backward(gradients(keys, step))
        torch.testing.assert_close(embedding(ids).detach(), after, rtol=2e-5, atol=1e-6)


def test_random_uniform_is_between_minus_1_and_1(damo_embedding, memory_store):
    keys = list(range(1, 301))
    initializer = {"name": "random_uniform"}
    ((before, _),) = damo_embedding(
        embeddings_of({"name": "sgd"}, initializer=initializer), [[0, keys, [[0.0] * DIM] * len(keys)]]
    )
    ours = Embedding(DIM, 0, initializer, store=memory_store)(torch.tensor(keys)).detach()
    for weights in (torch.tensor(before), ours):
        assert 0.98 < weights.abs().max() <= 1
        assert abs(weights.mean()) < 0.1


def test_what_the_page_says_of_1_1_12s_own_ways(damo_embedding):
    """Keys that it has no use for, key 0, and FTRL while a weight is zero."""
    plain, decayed = {"name": "adagrad", "gamma": 0.1}, {"name": "adagrad", "gamma": 0.1, "eta": 0.5}
    ftrl, named = {"name": "ftrl"}, {"name": "ftrl", "gamma": 0.1}
    lion, of_gamma = {"name": "lion"}, {"name": "lion", "gamma": 0.1}
    pushes = [[group, [1], [[1.0] * DIM]] for group in range(6) for _ in range(3)]
    results = damo_embedding(embeddings_of(plain, decayed, ftrl, named, lion, of_gamma), pushes)
    by_group = [results[group * 3 : (group + 1) * 3] for group in range(6)]
    assert by_group[0] == by_group[1]
    assert by_group[2] == by_group[3]
    assert by_group[4] == by_group[5]
    ((before, after),) = damo_embedding(embeddings_of({"name": "sgd"}), [[0, [0], [[1.0] * DIM]]])
    assert before == after == [[0.0] * DIM]  # padding
    sparse = {"name": "ftrl", "alpha": 0.1, "lambda1": 3.0}
    steps = damo_embedding(embeddings_of(sparse), [[0, [1], [[g] * DIM]] for g in (0.1, -0.1, -1.0, -2.0)])
    assert [after[0][0] for _, after in steps[:3]] == [0.0] * 3
    # n is the last gradient's square alone: |z| - lambda1 = 4 - 3, over sqrt(4) / alpha.
    assert steps[3][1][0][0] == pytest.approx(1 / 20)
