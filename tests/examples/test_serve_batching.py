"""Requests that are answered together."""

from typing import Any

import numpy as np

from damo_torchrec.serving import Predictor
from serve_batching import join, joinable, predict_together
from serve_cases import KEYS, body


def test_joined_requests_are_split_again(served: Any) -> None:
    _, path, _ = served
    with Predictor(path / "one", memory_budget="64MiB") as predictor:
        assert joinable(predictor)
        requests = [predictor.check(inputs_of(body(batch))) for batch in (3, 1, 7)]
        assert predictor.check(join(predictor, requests)).batch == 11
        for request, answer in zip(requests, predict_together(predictor, requests), strict=True):
            np.testing.assert_allclose(answer["output"], predictor.predict(request.arrays)["output"], atol=1e-6)


def inputs_of(request: dict[str, Any]) -> dict[str, Any]:
    flat = {name: [x for key in KEYS for sample in request[name][key] for x in sample] for name in list(request)[1:]}
    return {
        "dense": request["dense"],
        "features.values": flat["features"],
        "features.weights": flat["features.weights"],
        "features.lengths": [[len(sample) for sample in request["features"][key]] for key in KEYS],
    }
