"""The benchmark of exported models: how it takes turns, and a whole run. No figure is looked at."""

import json

import numpy as np
import pytest

import serving
import serving_load
from support import needs_onnxruntime


def test_contestants_take_turns_until_each_has_had_its_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    times = serving.race({"slow": call("slow", 1.0), "fast": call("fast", 0.25)}, 2.0)
    assert times == {"slow": [1.0] * serving.LEAST_CALLS, "fast": [0.25] * 8}
    assert order[:6] == ["slow", "fast"] * 3


@needs_onnxruntime
@pytest.mark.slow
def test_a_whole_run(tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.json"
    tiny = "--tables 2 --rows 50 --dim 4 --seconds 0.001 --large-rows 1000 --large-dim 4"
    monkeypatch.setattr("sys.argv", ["serving.py", *tiny.split(), "--json", str(report)])
    assert serving.run(serving.main) == 0
    figures = json.loads(report.read_text())
    names = {figure["name"] for figure in figures["lookups"]}
    assert names >= {"Gather by row number", "LabelEncoder and Gather", "standard operators"}
    assert {figure["batch"] for figure in figures["models"]} == {1, 16, 256}
    assert {figure["name"] for figure in figures["models"]} >= {"LabelEncoder and torch.onnx", "standard operators"}
    assert figures["large"]["rows"] == 1000
    assert "standard operators" in capsys.readouterr().out


def test_wrong_requests_are_wrong_in_each_way():
    body = json.dumps({"dense_features": [[1.0, 2.0]], "sparse_features": {"a": [[1]], "b": [[2]]}}).encode()
    rng = np.random.default_rng(0)
    made = [serving_load.wrong(body, number, rng) for number in range(8)]
    assert len({*made, body}) == 9


@needs_onnxruntime
@pytest.mark.slow
def test_a_whole_load(tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.json"
    tiny = "--tables 2 --rows 50 --dim 4 --seconds 1.5 --clients 2 --stalled 40 --wrong 40"
    monkeypatch.setattr("sys.argv", ["serving_load.py", *tiny.split(), "--json", str(report)])
    assert serving_load.run(serving_load.main) == 0
    figures = json.loads(report.read_text())
    assert [load["per_second"] > 0 for load in figures["load"]] == [True, True, True]
    assert sum(figures["wrong"].values()) == 40
    assert "40 wrong requests" in capsys.readouterr().out
