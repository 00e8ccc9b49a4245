"""benchmarks/checkpoint.py. No figure is looked at."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

import checkpoint
from common.program import RefusedError


def test_quick_gives_way_to_what_is_given():
    quick = checkpoint.parse_arguments(["--quick", "--rows", "500"])
    assert (quick.rows, quick.steps) == (500, checkpoint.QUICK["steps"])
    full = checkpoint.parse_arguments([])
    assert (full.rows, full.rounds) == (checkpoint.FULL["rows"], checkpoint.FULL["rounds"])


def test_wrong_options_are_refused(capsys):
    with pytest.raises(SystemExit):
        checkpoint.parse_arguments(["--changed", "1"])
    assert "between 0 and 1" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_with_figures(tmp_path, monkeypatch):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 2**30))
    with pytest.raises(RefusedError, match=r"up to 8,448 MiB, but .* has 1,024"):
        checkpoint.check_room(tmp_path, 2**30)


@pytest.mark.slow
def test_a_small_run_prints_tables_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    options = ["--tables", 2, "--rows", 3000, "--dim", 4, "--batch-size", 64, "--steps", 3, "--rounds", 1]
    command = [sys.executable, checkpoint.__file__, *map(str, [*options, "--json", report])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert written["benchmark"] == "checkpoint"
    assert written["dirty_bytes"] == 2 * 3000 * (4 * 5 + 8)
    assert [stall["background"] for stall in written["stalls"]] == [True, False]
    assert written["stalls"][1]["steps"] == 1
    assert len(written["increments"]) == 3
    for increment in written["increments"]:
        assert 0 < increment["new_bytes"] <= increment["bytes"] <= increment["disk_bytes"]
    assert "in the background" in done.stdout
    assert "1.00%" in done.stdout
