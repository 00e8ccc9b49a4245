"""Requests that are answered together."""

import asyncio
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec.server.batching import joinable, joined, predict_together
from damo_torchrec.serving import Predictor
from serve_cases import KEYS, body, with_client
from serving_cases import SGD, bags, random_features, train
from support import kjt


def test_joined_requests_are_split_again(served: Any) -> None:
    _, path, _ = served
    with Predictor(path / "one", memory_budget="64MiB") as predictor:
        assert joinable(predictor)
        requests = [predictor.check(inputs_of(body(batch))) for batch in (3, 1, 7)]
        assert predictor.check(joined(predictor, requests)).batch == 11
        for request, answer in zip(requests, predict_together(predictor, requests), strict=True):
            np.testing.assert_allclose(answer["output"], predictor.predict(request.arrays)["output"], atol=1e-6)


class Listwise(nn.Module):
    """Shares of a list, which is the batch."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.ebc = damo.EmbeddingBagCollection(bags("a", [8]), store=store, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        return self.ebc(features).values().sum(1).softmax(0)


@pytest.mark.parametrize("verify", [True, False])
def test_a_model_that_compares_samples_is_asked_for_one_client_at_a_time(
    store: Any, tmp_path: Any, verify: bool
) -> None:
    model = Listwise(store)
    train(model, (random_features("a", 9),))
    path = damo.serving.export(model, random_features("a", 2), tmp_path / "served", verify=verify)
    bodies = [{"features": {"a": [[i], [i + 1, i + 2]]}} for i in range(8)]

    async def use(client: httpx.AsyncClient) -> None:
        responses = await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))
        answers.append([response.json()["output"] for response in responses])

    answers: list[Any] = []
    for join in ("auto", "never", "always"):
        with_client(path, use, join=join, batch_seconds=1.0, batch_samples=6, workers=1)
    with torch.no_grad():
        alone = [model(kjt(body["features"])).numpy() for body in bodies]
    for asked in answers[:2]:
        np.testing.assert_allclose(asked, alone, atol=1e-6)
    assert np.abs(np.array(answers[2]) - alone).max() > 0.1
    with Predictor(path, memory_budget="64MiB") as predictor:
        assert predictor.by_sample is (False if verify else None)
        assert [joinable(predictor, join) for join in ("auto", "always", "never")] == [False, True, False]


def inputs_of(request: dict[str, Any]) -> dict[str, Any]:
    flat = {name: [x for key in KEYS for sample in request[name][key] for x in sample] for name in list(request)[1:]}
    return {
        "dense": request["dense"],
        "features.values": flat["features"],
        "features.weights": flat["features.weights"],
        "features.lengths": [[len(sample) for sample in request["features"][key]] for key in KEYS],
    }
