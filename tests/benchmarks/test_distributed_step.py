"""The benchmark of several ranks: what is counted, and a whole run. No figure is looked at."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import distributed_step
from parts.distributed.balance import balance_of


def test_balance_of_one_hot_id():
    found = balance_of([np.array([7] * 8), np.array([7] * 8)], ranks=2)
    assert (found.rows, found.lookups, found.distinct, found.hottest) == (2, 2, 2, 1)


def test_balance_of_many_ids():
    found = balance_of([np.arange(i, 80_000, 4) for i in range(4)], ranks=4)
    assert max(found.rows, found.lookups, found.distinct) < 1.05


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, distributed_step.__file__, "--quick", "--tables", "2", "--batch-size", "16", "--json", file],
        cwd=Path(distributed_step.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "ours takes" in done.stdout
    of_two = json.loads(file.read_text())["contests"][1]
    for sent in of_two["sent"].values():
        assert abs(sent - of_two["formula"]) < 0.1 * of_two["formula"] + 1000  # few ids spread unevenly
