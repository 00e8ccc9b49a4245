"""Sessions of exported models."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST, answer
from serving_cases import Pooled, feed, random_features, train


def test_what_is_no_exported_model_is_refused(tmp_path: Path) -> None:
    for read in (damo.onnx.session, damo.onnx.model_card):
        with pytest.raises(ValueError, match="is not a file: export makes one"):
            read(tmp_path / "m")
    onnx.save(
        onnx.parser.parse_model('<ir_version: 8, opset_import: ["": 18]> g (float x) => (float x) {}'),
        tmp_path / "o.onnx",
    )
    with pytest.raises(ValueError, match="is no model"):
        damo.onnx.model_card(tmp_path / "o.onnx")
    for threads in (0, -1, 100_000):
        with pytest.raises(ValueError, match=rf"num_threads must be in 1\.\.1024 or None, got {threads}"):
            damo.onnx.session(tmp_path / "o.onnx", num_threads=threads)


OLDEST = Path(sys.prefix) / "onnxruntime-oldest"
RUN = """
import sys, numpy, onnxruntime
inputs = dict(numpy.load(sys.argv[2]))
numpy.save(sys.argv[3], onnxruntime.InferenceSession(sys.argv[1]).run(None, inputs)[0])
print(onnxruntime.__version__)
"""


@pytest.mark.skipif(not OLDEST.is_dir(), reason="no onnxruntime of this Python is as old as pyproject.toml admits")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_oldest_runtime_gives_the_same(model: nn.Module, tmp_path: Path, dtype: str) -> None:
    file = damo.onnx.export(model, REQUEST, tmp_path / "m", dtype=dtype, unseen="initial")
    np.savez(tmp_path / "inputs.npz", **feed(features=REQUEST))
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(file), str(tmp_path / "inputs.npz"), str(tmp_path / "answer.npy")],
        env={**os.environ, "PYTHONPATH": str(OLDEST)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() != onnxruntime.__version__
    np.testing.assert_array_equal(np.load(tmp_path / "answer.npy"), answer(tmp_path / "m"))


@pytest.mark.parametrize(
    ("weighted", "options"),
    [(False, {}), (True, {"unseen": "initial", "max_length": 9}), (True, {"dtype": "int8"}), (False, {"min_count": 1})],
)
def test_a_copy_that_the_runtime_has_optimized_and_saved_answers_alike(
    store: damo.EmbeddingStore, tmp_path: Path, weighted: bool, options: dict[str, Any]
) -> None:
    model = Pooled(store, weighted)
    request = random_features("abc", 33, longest=9, weighted=weighted)
    train(model, (request,))
    file = damo.onnx.export(model, request, tmp_path / "m", **options)
    saving = onnxruntime.SessionOptions()
    saving.optimized_model_filepath = str(tmp_path / "m" / "optimized.onnx")
    saving.log_severity_level = 3  # it warns that what it saves is for machines like this one
    onnxruntime.InferenceSession(str(file), saving)
    for batch in (request, random_features("abc", 2, longest=1, weighted=weighted), random_features("abc", 0)):
        inputs = {"features.weights": np.empty(0, np.float32)} if weighted else {}
        inputs |= feed(features=batch)
        expected = damo.onnx.session(file, operators=False).run(None, inputs)[0]
        for session in (
            damo.onnx.session(tmp_path / "m" / "optimized.onnx", operators=False),
            onnxruntime.InferenceSession(saving.optimized_model_filepath),
        ):
            np.testing.assert_allclose(session.run(None, inputs)[0], expected, rtol=1e-6, atol=1e-7)
