"""`import damo_torchrec` where something that it needs is missing: one sentence says what to install."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Sequence

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


# As FBGEMM's library is where it was built for another torch.
UNFIT = """
import sys, importlib.abc
class Unfit(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "fbgemm_gpu":
            raise OSError("Could not load this library: fbgemm_gpu_py.so")
sys.meta_path.insert(0, Unfit())
"""
UNTRIED = """
import importlib.metadata as metadata
import torch, torchrec
true = metadata.version
metadata.version = lambda name: "2.99.0" if name == "torch" else true(name)
"""


def last_line(*script: str, options: Sequence[str] = ("-W", "ignore")) -> str:
    """How a program's error ends."""
    done = subprocess.run(
        [sys.executable, *options, "-c", "\n".join(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "torchrec", "fbgemm_gpu", "tensordict"])
def test_a_missing_package_is_named_with_how_to_install_it(name):
    line = last_line(ABSENT.format(name=name), "import damo_torchrec")
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")
    assert name in line
    assert "Without a GPU: `pip install torch==" in line


@pytest.mark.slow
def test_an_fbgemm_for_another_torch_is_said_with_what_fits():
    line = last_line(UNFIT, "import damo_torchrec")
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")
    assert "Could not load this library: fbgemm_gpu_py.so" in line
    assert f"Installed: torch {importlib.metadata.version('torch')}, " in line


@pytest.mark.slow
def test_versions_that_no_test_has_met_are_warned_of():
    script = [UNTRIED, "import warnings", "warnings.simplefilter('error')", "import damo_torchrec"]
    line = last_line(*script, options=[])
    assert line.startswith("UserWarning: ")
    assert "no test has met them together" in line
    assert "torch 2.99.0" in line


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
