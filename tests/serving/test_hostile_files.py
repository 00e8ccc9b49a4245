"""What no forged file may do: crash the process that serves, or raise what is no error of this package."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_predictor_survives_forged_files() -> None:
    program = Path(__file__).with_name("fuzz_predictor.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(program)],
        cwd=program.parents[2],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
