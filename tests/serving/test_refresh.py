"""A dense graph with the parameters of the moment."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec.serving.refresh import refresh_dense
from serving_cases import train


class Normed(nn.Module):
    """Of a layer and its batch norm torch.onnx makes one."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.embedding = damo.Embedding(4, store=store, optimizer={"name": "sgd", "gamma": 0.1})
        self.layers = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(ids).flatten(1))


def test_parameters_that_the_graph_holds_otherwise_are_exported_anew(store: Any, tmp_path: Path) -> None:
    model, ids = Normed(store), torch.arange(8).view(4, 2)
    train(model, (ids,))
    path = damo.serving.export(model, ids, tmp_path / "served")
    with pytest.raises(ValueError, match=r"the graph does not hold .* as they are: export it anew"):
        refresh_dense((path / "dense.onnx").read_bytes(), model)
    options = {"since": path, "model": model, "args": ids, "every_steps": 1}
    publisher = damo.serving.DeltaPublisher(store, tmp_path / "deltas", **options)
    with damo.serving.Predictor(path, memory_budget="64MiB") as predictor:
        for _ in range(2):
            train(model, (ids,))
            with torch.no_grad():
                model.layers[0].weight.add_(1.0)
                model.layers[1].running_mean.sub_(1.0)
            delta = publisher.step()
            assert delta is not None
            predictor.apply_delta(delta)
            with torch.no_grad():
                expected = model(ids).numpy()
            np.testing.assert_allclose(predictor.predict({"ids": ids})["output"], expected, rtol=1e-5, atol=1e-5)
