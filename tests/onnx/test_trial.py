"""An export is run once against its model, before it takes its place."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec.onnx import trial
from exported_models import GIVEN, REQUEST, Given, answer, files_in
from serving_cases import Pooled, feed, random_features, train


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (lambda e, d: {"dense": d * 2, "emb": e}, {}, r"got \['dense'\]"),
        (lambda e, d: {"features.values": e}, {}, r"got \['features.values'\]"),
        (lambda e, d: {"a": [e, e * 2], "a_0": e * 3}, {}, r"got \['a_0'\]"),
        (lambda e, d: {1: e, "1": e * 2}, {}, r"got \['1'\]"),
        (lambda e, d: {"": e}, {}, r"got \[''\]"),
        (lambda e, d: (e, d * 1), {"output_names": ["y", "y"]}, r"got \['y'\]"),
        (lambda e, d: {}, {}, "the model returns no tensor"),
        (lambda e, d: None, {}, "the model returns no tensor"),
    ],
)
@pytest.mark.parametrize("dense_only", [False, True])
def test_outputs_that_clash_or_vanish_are_refused(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any, options: Any, message: str, dense_only: bool
) -> None:
    for verify in (True, False):
        with pytest.raises(ValueError, match=message):
            damo.onnx.export(
                Given(store, outputs), GIVEN, tmp_path / "m", dense_only=dense_only, verify=verify, **options
            )
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "outputs",
    [
        lambda e, d: {"bias": e, "ebc": d, "add": e * d, "mul": e - d},
        lambda e, d: {"rows": [e, e], "same": e, "given": d},
        lambda e, d: {"model.bias": e, "none": None, "lookup": (d * 1).sum(1)},
    ],
)
def test_outputs_may_be_called_as_what_is_in_the_graph(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any
) -> None:
    model = Given(store, outputs).eval()
    session = onnxruntime.InferenceSession(str(damo.onnx.export(model, GIVEN, tmp_path / "m")))
    names = [output.name for output in session.get_outputs()]
    answers = dict(zip(names, session.run(None, feed(dense=GIVEN[0], features=GIVEN[1])), strict=True))
    expected = {}
    for name, value in model(*GIVEN).items():
        items = value if isinstance(value, list) else [value]
        expected |= {name if len(items) == 1 else f"{name}_{i}": item for i, item in enumerate(items)}
    assert answers.keys() == {name for name, value in expected.items() if value is not None}
    for name, values in answers.items():
        np.testing.assert_allclose(values, expected[name].detach().numpy(), atol=1e-5)


def branch(e: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """What torch.export takes one way, with a batch of another size than the arguments'."""
    return e * 2 if d.shape[0] == 6 and not torch.compiler.is_exporting() else e


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda e, d: nn.functional.dropout(e, training=True), "differs from the model's by"),
        (branch, "output 'output' of the graph differs from the model's by"),
        (lambda e, d: e[:, :2] if not torch.compiler.is_exporting() else e, r"float32 \(6, 4\), but .* \(6, 2\)"),
        (lambda e, d: e.double() if not torch.compiler.is_exporting() else e, "float32 .*, but the model's is float64"),
    ],
)
@pytest.mark.parametrize("dense_only", [False, True])
def test_graphs_that_answer_otherwise_are_refused(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any, message: str, dense_only: bool
) -> None:
    path = tmp_path / "m"
    damo.onnx.export(Given(store, lambda e, d: e), GIVEN, path)
    before = files_in(path)
    with pytest.raises(RuntimeError, match=message):
        damo.onnx.export(Given(store, outputs), GIVEN, path, dense_only=dense_only)
    assert files_in(path) == before
    damo.onnx.export(Given(store, outputs), GIVEN, path, dense_only=dense_only, verify=False)


def test_a_checkpoint_to_serve_is_not_made_of_a_graph_that_answers_otherwise(
    store: damo.EmbeddingStore, tmp_path: Path
) -> None:
    model = Given(store, branch)
    with pytest.raises(RuntimeError, match="differs from the model's by"):
        damo.serving.export(model, GIVEN, tmp_path / "served")
    assert not (tmp_path / "served").exists()
    damo.serving.export(model, GIVEN, tmp_path / "served", verify=False)


def test_a_graph_that_cannot_be_loaded_is_refused(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("damo_torchrec.onnx.lowering.functions_for", lambda _: [])
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot load the graph"):
        damo.onnx.export(model, REQUEST, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_wrong_rows_are_refused(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(trial._KEPT, "float32", lambda rows: rows * 1.1)
    with pytest.raises(RuntimeError, match="differs from the model's"):
        damo.onnx.export(model, REQUEST, tmp_path / "m")
    damo.onnx.export(model, REQUEST, tmp_path / "m", verify=False)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "int8"},
        {"dtype": "float16"},
        {"unseen": "initial"},
        {"min_count": 99},
        {"top_n": 1},
        {"max_length": 1},
    ],
)
def test_options_change_what_is_expected(store: damo.EmbeddingStore, tmp_path: Path, options: Any) -> None:
    model = Pooled(store, weighted=True)
    train(model, (random_features("abc", 16, weighted=True),))
    damo.onnx.export(model, random_features("abc", 16, weighted=True, seed=1), tmp_path / "m", **options)


def test_whole_numbers_may_differ_where_scores_are_equal(
    store: damo.EmbeddingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Given(store, lambda e, d: (e.argmax(1) + (0 if torch.compiler.is_exporting() else 1), e))
    damo.onnx.export(model, GIVEN, tmp_path / "m")
    assert "the outputs ['output_0'], which are no fractions, differ" in caplog.text


def test_training_meanwhile_is_no_difference(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored = trial.stored_rows

    def trained_in_between(*arguments: Any) -> Any:
        rows = stored(*arguments)

        def rows_before_training(output: Any, ids: torch.Tensor) -> torch.Tensor:
            found = rows(output, ids)
            with torch.enable_grad():
                train(model, (REQUEST,))
            return found

        return rows_before_training

    monkeypatch.setattr("damo_torchrec.onnx.graphs.stored_rows", trained_in_between)
    damo.onnx.export(model, REQUEST, tmp_path / "m")
    assert "is not compared with the model, which was trained while it was exported" in caplog.text
    assert np.isfinite(answer(tmp_path / "m")).all()
