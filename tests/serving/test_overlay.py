"""Rows of a delta that the store does not have yet."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo
from damo_torchrec.serving import updates
from damo_torchrec.serving.overlay import pool
from served_training import Training, answers_of, check_same
from serving_cases import SGD
from support import small_store


def test_the_overlay_alone_gives_the_new_state(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the middle of `apply_delta`: with no row, some rows, and all of them in the store."""
    seen = []
    monkeypatch.setattr(updates, "_ROWS_AT_A_TIME", 5)
    training.step()
    expected = training.answers()
    parts = updates.Updates._parts

    def watched(self: Any, n: int) -> Iterator[slice]:
        for part in parts(self, n):
            check_same(answers_of(predictor), expected)
            seen.append(part)
            yield part

    monkeypatch.setattr(updates.Updates, "_parts", watched)
    predictor.apply_delta(training.delta())
    assert len(seen) > 20
    check_same(answers_of(predictor), expected)


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    weighted=st.booleans(),
    mean=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_bags_are_pooled_to_the_bit_as_the_engine_does(
    lengths: list[int], weighted: bool, mean: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    rows = rng.choice([-1, -0.0, 1], (n, 5)).astype(np.float32) * rng.standard_normal((n, 5), dtype=np.float32)
    weights = rng.choice(np.float32([-1, 0, 0.3, 1, 7]), n) if weighted else None
    pooling = PoolingType.MEAN if mean else PoolingType.SUM
    table = EmbeddingBagConfig(name="t", embedding_dim=5, num_embeddings=9, feature_names=["a"], pooling=pooling)
    with small_store() as store:
        ebc = damo.EmbeddingBagCollection([table], is_weighted=weighted, store=store, **SGD).eval()
        store.table("t").set(torch.arange(n), torch.from_numpy(rows))
        features = KeyedJaggedTensor(
            keys=["a"],
            values=torch.arange(n),
            lengths=torch.tensor(lengths),
            weights=torch.from_numpy(weights) if weights is not None else None,
        )
        expected = ebc(features).values().numpy()
    got = pool(rows, np.array(lengths), weights, mean)
    np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))
