"""Damo-Embedding's schedules as docs/torchrec.md writes them with torch's LambdaLR: the numbers of their formulas."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo

LR, N, RATE, END, ALPHA, BETA, PERIODS = 0.4, 10, 0.3, 0.05, 0.1, 0.001, 0.5
DOC = Path(__file__).parents[2] / "docs" / "torchrec.md"

FORMULAS = {
    "exponential": lambda s: LR * RATE ** (s / N),
    "polynomial": lambda s: (LR - END) * RATE ** (1 - np.minimum(s, N) / N) + END,
    "natural exponential": lambda s: LR * np.exp(-RATE * s / N),
    "inverse time": lambda s: LR / (1 + RATE * s / N),
    "cosine": lambda s: LR * 0.5 * (1 + np.cos(np.pi * s / N)),
    "linear cosine": lambda s: (
        LR * (ALPHA + (N - np.minimum(s, N)) / N) * 0.5 * (1 + np.cos(2 * np.pi * PERIODS * np.minimum(s, N) / N))
        + BETA
    ),
}


def documented():
    """By name: the function in the page's table."""
    names = {"math": math, "rate": RATE, "n": N, "end": END, "lr": LR, "alpha": ALPHA, "beta": BETA, "periods": PERIODS}
    rows = re.findall(r"^\| ([a-z ]+) \| `(lambda s: .*)` \|$", DOC.read_text(), re.MULTILINE)
    return {name: eval(code, dict(names)) for name, code in rows}  # our own page


def test_the_page_has_all_six():
    assert documented().keys() == FORMULAS.keys()


@pytest.mark.parametrize("name", FORMULAS)
def test_the_learning_rate_is_the_formulas_at_each_step(memory_store, name):
    embedding = damo.Embedding(2, optimizer={"name": "sgd", "gamma": LR}, store=memory_store)
    scheduler = torch.optim.lr_scheduler.LambdaLR(embedding.fused_optimizer, documented()[name])
    rates = []
    moved = []
    ids = torch.tensor([1])
    for _ in range(N + 5):
        rates.append(embedding.fused_optimizer.param_groups[0]["lr"])
        before = embedding(ids).detach().clone()
        embedding(ids).sum().backward()
        moved.append((before - embedding(ids).detach())[0, 0].item())
        embedding.fused_optimizer.step()
        scheduler.step()
    expected = FORMULAS[name](np.arange(N + 5))
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
