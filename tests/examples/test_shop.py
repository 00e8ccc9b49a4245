"""The examples of a shop: its days learn as well as with all strings known beforehand, and retrieval finds items."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("xxhash")
import two_tower_faiss

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "default", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    return done.stdout


@pytest.mark.slow
def test_a_shops_days(tmp_path):
    known, _, names, *days = run("daily.py", tmp_path, "--quick").splitlines()
    assert names.split()[:5] == ["day", "ours", "served", "vocabulary", "hashed"]
    days = [[float(number) for number in line.replace(",", "").split()] for line in days]
    assert [day[0] for day in days] == [2, 3]
    for _, ours, served, vocabulary, _, _ in days:
        assert ours == served > 0.7  # to the digits that are printed
        assert abs(ours - vocabulary) < 0.04
    assert days[-1][-1] == int(known.split()[0])  # a row for each string


@pytest.mark.slow
def test_retrieval_finds_more_than_what_is_popular(tmp_path):
    first, *scores = run("two_tower_faiss.py", tmp_path, "--quick").splitlines()
    popular, *epochs = [float(re.search(r"recall@20.* (0\.\d+)", line)[1]) for line in scores]
    assert first.startswith("600 users, 300 items; ")
    assert epochs[-1] > 0.45 > 0.25 > popular


def test_the_loss_is_that_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(2, 5, 3, generator=generator)
    ids, log_q = torch.tensor([7, -1, 7, 2, -1]), torch.rand(5, generator=generator).log()
    losses = []
    for i in range(5):
        logits = {
            j: float(queries[i] @ items[j]) / two_tower_faiss.TEMPERATURE - float(log_q[j])
            for j in range(5)
            if j == i or ids[j] != ids[i]
        }
        losses.append(math.log(sum(math.exp(logit) for logit in logits.values())) - logits[i])
    loss = two_tower_faiss.in_batch_loss(queries, items, ids, log_q)
    assert math.isclose(loss.item(), sum(losses) / 5, rel_tol=1e-4)


def test_faiss_and_numpy_find_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    vectors, queries = rng.standard_normal((50, 8)).astype(np.float32), rng.standard_normal((9, 8)).astype(np.float32)
    ids = np.concatenate([[-1, 2**63 - 1, -(2**63)], np.arange(47)])
    pytest.importorskip("faiss")
    by_faiss = two_tower_faiss.Index(ids, vectors).search(queries, 7)
    monkeypatch.setattr(two_tower_faiss, "faiss", None)
    by_numpy = two_tower_faiss.Index(ids, vectors).search(queries, 7)
    np.testing.assert_array_equal(by_faiss, by_numpy)
