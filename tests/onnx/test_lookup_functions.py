"""Bags of every length are pooled as the model does, whatever the number of threads."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from exported_models import check_parity
from serving_cases import Pooled, feed, random_features, train


@pytest.mark.parametrize("weighted", [False, True])
def test_bags_of_very_different_lengths(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    def requests(batch: int) -> dict[str, Any]:
        rng = np.random.default_rng(batch)
        lengths = np.where(rng.random(4 * batch) < 0.05, rng.integers(0, 400, 4 * batch), 1)
        n = int(lengths.sum())
        weights = torch.from_numpy(rng.random(n, dtype=np.float32) / 100)
        values = torch.from_numpy(rng.integers(-60, 60, n))
        features = KeyedJaggedTensor(
            keys=list("axbc"), values=values, lengths=torch.from_numpy(lengths), weights=weights, stride=batch
        )
        return {"features": features}

    check_parity(Pooled(store, weighted), requests, tmp_path / "model", batches=(0, 1, 50, 500))


@pytest.mark.parametrize("weighted", [False, True])
def test_results_do_not_depend_on_threads(store: damo.EmbeddingStore, tmp_path: Path, weighted: bool) -> None:
    model = Pooled(store, weighted=weighted)
    # Few bags, too: fewer than threads.
    sizes = [(2000, 1), (2000, 5), (2000, 60), *itertools.product((1, 2, 3, 8), (6, 9, 61, 300))]
    requests = [random_features("abc", batch, longest=longest, weighted=weighted, seed=3) for batch, longest in sizes]
    train(model, (requests[0],))
    damo.onnx.export(model, requests[0], tmp_path / "model")
    sessions = [damo.onnx.session(tmp_path / "model", num_threads=n, operators=False) for n in (1, 2, 3, 8, 16)]
    for request in requests:
        first, *others = [session.run(None, feed(features=request))[0] for session in sessions]
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_an_empty_store(store: damo.EmbeddingStore, tmp_path: Path) -> None:
    model = Pooled(store, weighted=False).eval()
    damo.onnx.export(model, random_features("abc", 1), tmp_path / "model")
    session = damo.onnx.session(tmp_path / "model", operators=False)
    (answer,) = session.run(None, feed(features=random_features("abc", 5)))
    assert answer.shape == (5, 27)
    assert not answer.any()
