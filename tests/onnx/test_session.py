"""Sessions of exported models."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST, answer
from serving_cases import feed


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
