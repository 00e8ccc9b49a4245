"""Quantiles of durations."""

import numpy as np
import pytest

from damo_torchrec.serving.histogram import Histogram


def test_quantiles_are_those_of_numpy_up_to_a_bucket() -> None:
    histogram = Histogram()
    seconds = np.random.default_rng(0).lognormal(-7, 1.5, 1000)
    for each in seconds:
        histogram.add(each)
    latencies = histogram.latencies()
    assert latencies.count == 1000
    assert latencies.total == pytest.approx(seconds.sum())
    for q in (0.01, 0.5, 0.99, 1.0):
        exact = np.quantile(seconds, q, method="inverted_cdf")
        assert exact <= latencies.quantile(q) <= exact * 1.19
    assert Histogram().latencies().quantile(0.5) == 0
    histogram.add(1e9)
    assert histogram.latencies().quantile(1) == float("inf")
