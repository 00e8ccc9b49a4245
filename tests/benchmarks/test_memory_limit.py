"""benchmarks/memory_limit.py and the README's pictures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import memory_limit
import pictures

ROOT = Path(__file__).parents[2]


def test_quick_gives_way_to_what_is_given():
    quick = memory_limit.parse_arguments(["--quick", "--rows", "500"])
    assert (quick.rows, quick.limit) == (500, memory_limit.QUICK["limit"])


@pytest.mark.slow
def test_a_contestant_ends_at_its_rows_or_at_the_limit(tmp_path):
    report = tmp_path / "report.json"
    options = ["--rows", "4000", "--new", "1000", "--dim", "4", "--budget", "64", "--limit"]
    for limit, killed in (("4000", False), ("64", True)):  # torch alone takes more
        command = [sys.executable, memory_limit.__file__, *options, limit, "--json", str(report)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        for contestant in json.loads(report.read_text())["contestants"]:
            assert (contestant["killed"] is not None) == killed
            assert killed or [rows for rows, _ in contestant["points"]] == [1000, 2000, 3000, 4000]


def test_pictures_show_what_was_measured():
    steps = pictures.steps((ROOT / "docs" / "performance.md").read_text())
    assert ("250,000, 64, 1: Adam", "nn.EmbeddingBag, SparseAdam", 8.6, 46.9, "5.5") in steps
    figure = pictures.speed((ROOT / "docs" / "performance.md").read_text())
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert " 28.3, 3.6 ×" in texts
    measured = json.loads((ROOT / "docs" / "images" / "memory.json").read_text())
    texts = " ".join(text.get_text() for text in pictures.memory(measured).axes[0].texts)
    assert "nn.EmbeddingBag: killed at" in texts
    assert "goes on" in texts
    assert max(taken for _, taken in measured["contestants"][0]["points"]) < measured["options"]["limit"] << 20
