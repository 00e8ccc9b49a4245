"""DLRM on two processes: it learns, and goes on where both were saved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = Path(__file__).parents[2] / "examples" / "dlrm_distributed.py"


def run(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", _PROGRAM, *arguments],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_learns_and_goes_on(tmp_path):
    told = run(tmp_path, "--epochs", "1")
    assert "2 processes, from step 0" in told  # gloo of torch 2.9 says something first
    assert float(re.search(r"Test AUC (0\.\d+) on 16,281 samples", told)[1]) > 0.89
    rows = [int(n.replace(",", "")) for n in re.search(r"Rows by rank: ([\d,]+), ([\d,]+)", told).groups()]
    assert min(rows) > 0.9 * max(rows)
    told = run(tmp_path, "--epochs", "1")
    assert "2 processes, from step 128" in told
