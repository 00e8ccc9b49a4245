"""Damo-Embedding 1.1.12 as it is published, in processes of its own: for tests, which are skipped where it is not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_REQUIREMENT = "damo-embedding==1.1.12"
Results = list[list[list[list[float]]]]  # by push, before and after, by key
Run = Callable[..., Results]


def installed_at(directory: Path) -> Path:
    """Where it is installed: what DAMO_EMBEDDING_1_1_12 in the environment says, or else `directory`, by pip."""
    if given := os.environ.get("DAMO_EMBEDDING_1_1_12"):
        return Path(given)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    try:
        done = subprocess.run(
            [*pip, "--target", str(directory), _REQUIREMENT], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip does not get {_REQUIREMENT}")
    if done.returncode != 0:
        pytest.skip(f"pip cannot install {_REQUIREMENT}: {done.stderr.strip()[-200:]}")
    return directory


def runner(directory: Path, scratch: Path) -> Run:
    """Calls damo_program.py with what is installed at `directory`."""

    def run(embeddings: list[dict[str, object]], pushes: list[list[object]], dump: Path | None = None) -> Results:
        source, target = scratch / "given.json", scratch / "results.json"
        source.write_text(json.dumps({"embeddings": embeddings, "pushes": pushes, "dump": dump and str(dump)}))
        target.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("damo_program.py")), str(source), str(target)],
            env={**os.environ, "PYTHONPATH": str(directory)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if "ModuleNotFoundError" in done.stderr or "ImportError" in done.stderr:
            pytest.skip(f"{_REQUIREMENT} does not run here: {done.stderr.strip()[-200:]}")
        assert target.exists(), done.stderr + done.stdout
        results: Results = json.loads(target.read_text())
        return results

    return run
