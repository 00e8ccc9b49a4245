"""A server needs no torch: neither a `Predictor` that follows deltas, nor an ONNX Runtime session, nor the tools."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

import damo_torchrec as damo
from served_training import Training, check_same, request_of
from serving_cases import SGD
from support import small_store

ABSENT = """
import json, sys
for name in ("torch", "torchrec", "fbgemm_gpu"):
    sys.modules[name] = None
import damo_torchrec as damo
arguments = sys.argv[1:]
"""
FOLLOW = """
path, delta, inputs = arguments
inputs = json.loads(inputs)
with damo.serving.Predictor(path, memory_budget="64MiB", num_threads=1) as predictor:
    answers = [predictor.predict(inputs)]
    predictor.apply_delta(delta)
    answers.append(predictor.predict(inputs))
    assert predictor.stats().deltas_applied == 1
print(json.dumps([{name: array.tolist() for name, array in answer.items()} for answer in answers]))
"""
SESSION = """
graph, inputs = arguments
import numpy
inputs = {name: numpy.array(values) for name, values in json.loads(inputs).items()}
print(json.dumps(damo.onnx.session(graph, num_threads=1).run(None, inputs)[0].tolist()))
"""


def output_without_torch(program: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", ABSENT + program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_predictor_answers_and_follows(training: Training) -> None:
    request = request_of(5, seed=3)
    features, ids = request["features"], request["ids"]
    inputs = {
        "features.values": features.values().tolist(),
        "features.lengths": features.lengths().reshape(2, 5).tolist(),
        "features.weights": features.weights().tolist(),
        "ids": ids.tolist(),
    }
    training.model.eval()
    expected = [training.model(features, ids)]
    training.step()
    delta = training.delta()
    training.model.eval()
    expected.append(training.model(features, ids))
    answers = output_without_torch(FOLLOW, training.path / "served", delta, json.dumps(inputs))
    for answer, outputs in zip(answers, expected, strict=True):
        arrays = {name: np.array(values, dtype=np.float32) for name, values in answer.items()}
        check_same([arrays], [{name: output.detach().numpy() for name, output in outputs.items()}])


class Sums(nn.Module):
    """Sums of rows."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["a"])]
        self.bags = damo.EmbeddingBagCollection(tables, store=store, **SGD)

    def forward(self, features: KeyedJaggedTensor) -> Any:
        return self.bags(features).values()


@pytest.mark.slow
def test_a_session_runs(tmp_path: Path) -> None:
    features = KeyedJaggedTensor.from_lengths_sync(
        keys=["a"], values=torch.tensor([5, -1, 7, 5]), lengths=torch.tensor([2, 0, 2])
    )
    with small_store(tmp_path / "store") as store:
        model = Sums(store)
        model(features).sum().backward()
        graph = damo.onnx.export(model, features, tmp_path / "model.onnx")
        model.eval()
        expected = model(features).detach().numpy()
    inputs = {"features.values": features.values().tolist(), "features.lengths": [features.lengths().tolist()]}
    answer = output_without_torch(SESSION, graph, json.dumps(inputs))
    np.testing.assert_array_equal(np.array(answer, dtype=np.float32), expected)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_tool_runs(served: Path, command: str) -> None:
    program = (
        'sys.argv[:] = ["damo-torchrec", *arguments]\nfrom damo_torchrec.cli.main import main\nassert main() == 0\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", ABSENT + program, command, str(served / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "step_3" in done.stdout
