"""`import damo_torchrec` where something that it needs is missing: one sentence says what to install."""

import subprocess
import sys
from pathlib import Path

import pytest

# As if the package were not installed, or a library that the compiled part was linked to.
ABSENT = """
import sys
sys.modules[{name!r}] = None
"""
UNLINKED = """
import sys, importlib.abc
class Unlinked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "damo_torchrec._core":
            raise ImportError("librocksdb.so.7.8: cannot open shared object file: No such file or directory")
sys.meta_path.insert(0, Unlinked())
"""


def last_line(*script: str) -> str:
    """How a program's error ends."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "torchrec", "fbgemm_gpu", "tensordict"])
def test_a_missing_package_is_named_with_how_to_install_it(name):
    line = last_line(ABSENT.format(name=name), "import damo_torchrec")
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM, and one of them ")
    assert name in line
    assert "`pip install 'damo-torchrec[cuda]'`" in line


def test_the_versions_named_are_those_of_the_set_up():
    project = Path(__file__).parents[1]
    source = (project / "damo_torchrec" / "__init__.py").read_text()
    by_hand = (project / "CONTRIBUTING.md").read_text()
    for requirement in ("torch==2.13.0", "fbgemm-gpu-cpu==1.8.0", "torchmetrics==1.0.3", "torchrec==1.8.0"):
        assert requirement in source
        assert requirement in by_hand


@pytest.mark.slow
def test_a_missing_library_is_named_with_how_to_install_it():
    line = last_line(UNLINKED, "import damo_torchrec")
    assert "librocksdb.so.7.8: cannot open shared object file" in line
    assert "apt-get install librocksdb-dev" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "what"),
    [
        ("onnx", "onnx", "'damo-torchrec[onnx]'"),
        ("onnxruntime", "serving", "'damo-torchrec[onnx]'"),
        ("lightning", "lightning", "lightning"),
    ],
)
def test_a_part_that_needs_more_says_what(name, module, what):
    line = last_line(ABSENT.format(name=name), f"import damo_torchrec.{module}")
    assert line.startswith(f"ImportError: damo_torchrec.{module} needs pip install {what}: ")
    assert name in line
