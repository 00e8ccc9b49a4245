"""The short examples run as a newcomer runs them, and learn something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, tmp_path, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_reads_its_rows_back(tmp_path):
    assert run("quickstart", tmp_path).startswith("3 rows; that of user 7: tensor([[")


@pytest.mark.slow
def test_dlrm_comes_full_circle(tmp_path):
    pytest.importorskip("onnxruntime")
    told = run("dlrm", tmp_path, "--epochs", "1")
    assert float(re.search(r"Test AUC (0\.\d+) on 16,281 samples", told)[1]) > 0.89
    file, answer, expected = re.search(
        r"Exported to (\S+\.onnx), .*\nAsked .* answers (0\.\d+), and the model (0\.\d+)", told
    ).groups()
    assert Path(file) == tmp_path / "examples-store" / "census-onnx" / "model.onnx"
    assert Path(file).is_file()
    assert float(answer) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.slow
def test_early_stopping_goes_back_to_its_best_epoch(tmp_path):
    *epochs, last = run("early_stopping", tmp_path).splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in epochs]
    best, back, least = re.fullmatch(r"back to best-(\d+): test loss ([\d.]+), best ([\d.]+)", last).groups()
    assert float(back) == float(least) == min(losses) == losses[int(best)] < 0.6
    assert len(losses) == int(best) + 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "least"), [("deepfm", 0.86), ("lightning_dlrm", 0.89)])
def test_a_model_learns_from_the_census(tmp_path, name, least):
    aucs = re.findall(r"test AUC (0\.\d+)", run(name, tmp_path))
    assert float(aucs[-1]) > least


@pytest.mark.slow
def test_training_and_serving_at_once_tells_its_story(tmp_path):
    """The new user's clicks are unknown at first, and known in the end."""
    command = [sys.executable, EXAMPLES / "train_and_serve.py"]
    environment = {**os.environ, "PYTHONWARNINGS": "default", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith(" ms")]
    assert len(rows) > 2
    (even, odd), (even_in_the_end, odd_in_the_end) = [[float(text) for text in row[1:3]] for row in (rows[0], rows[-1])]
    assert even < 0.1 < 0.9 < odd
    assert odd_in_the_end < 0.1 < 0.9 < even_in_the_end
    assert int(rows[-1][3]) >= len(rows) - 1
    assert not [*tmp_path.glob("train_and_serve-*"), *tmp_path.glob("damo_torchrec-*")]
