"""The package's imports: what each brings, and where something that it needs is missing, the sentence that says so."""

import ast
import importlib
import importlib.metadata
import subprocess
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest

import damo_torchrec
from support import needs_onnxruntime

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
    line = last_line(ABSENT.format(name=name), "from damo_torchrec import EmbeddingBagCollection")
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")
    assert name in line
    assert "Without a GPU: `pip install torch==" in line


@pytest.mark.slow
def test_an_fbgemm_for_another_torch_is_said_with_what_fits():
    line = last_line(UNFIT, "import damo_torchrec", "damo_torchrec.EmbeddingBagCollection")
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")
    assert "Could not load this library: fbgemm_gpu_py.so" in line
    assert f"Installed: torch {importlib.metadata.version('torch')}, " in line


@pytest.mark.slow
def test_versions_that_no_test_has_met_are_warned_of():
    script = [UNTRIED, "import warnings", "warnings.simplefilter('error')", "from damo_torchrec import EmbeddingStore"]
    line = last_line(*script, options=[])
    assert line.startswith("UserWarning: ")
    assert "no test has met them together" in line
    assert "torch 2.99.0" in line


@pytest.mark.slow
def test_a_missing_library_is_named_with_how_to_install_it():
    line = last_line(UNLINKED, "import damo_torchrec", "damo_torchrec.EmbeddingStore")
    assert "librocksdb.so.7.8: cannot open shared object file" in line
    assert "apt-get install librocksdb-dev" in line
    assert "make venv" not in line  # which is no help to who installed a wheel


@pytest.mark.slow
def test_a_compiled_part_that_is_not_there_is_said_with_where_it_was_looked_for():
    line = last_line(ABSENT.format(name="damo_torchrec._core"), "from damo_torchrec import EmbeddingStore")
    assert f"{Path(damo_torchrec.__file__).parent} has none for this Python" in line
    assert "`make venv` builds one" in line
    assert "any other folder" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module", "what"),
    [
        ("onnx", "onnx", "'damo-torchrec[onnx]'"),
        ("onnxruntime", "serving", "'damo-torchrec[onnx]'"),
        ("pyarrow", "data", "'damo-torchrec[arrow]'"),
        ("lightning", "lightning", "lightning"),
    ],
)
def test_a_part_that_needs_more_says_what(name, module, what):
    line = last_line(ABSENT.format(name=name), f"import damo_torchrec.{module}")
    assert line.startswith(f"ImportError: damo_torchrec.{module} needs pip install {what}: ")
    assert name in line


@needs_onnxruntime
def test_what_is_public_is_found_where_type_checkers_are_told():
    tree = ast.parse(Path(damo_torchrec.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))  # TYPE_CHECKING
    told = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    # `import *` brings what every installation has.
    assert sorted(told) == sorted([*damo_torchrec.__all__, "data", "distributed", "ids", "onnx", "serving"])
    for name, module in told.items():
        value = getattr(damo_torchrec, name)
        assert value is getattr(importlib.import_module(module), name)
        assert name in dir(damo_torchrec)


def test_what_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'damo_torchrec' has no attribute 'Store'"):
        damo_torchrec.Store  # noqa: B018


def test_the_package_itself_needs_neither_torch_nor_the_compiled_part():
    script = [
        ABSENT.format(name="torch"),
        UNLINKED,
        "import damo_torchrec, sys",
        "from damo_torchrec import DamoError, __version__",
        "print(sorted({'numpy', 'torchrec'} & set(sys.modules)))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


THREADS = """
import damo_torchrec, sys, threading
names, errors = sys.argv[1:], []
begin = threading.Barrier(len(names))
def use(name):
    begin.wait()
    try:
        getattr(damo_torchrec, name)
    except BaseException as error:
        errors.append(f"{name}: {error!r}")
threads = [threading.Thread(target=use, args=(name,)) for name in names]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(errors)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("swap", "load_model"),
        pytest.param(("distributed", "swap", "EmbeddingBagCollection", "serving"), marks=needs_onnxruntime),
    ],
)
def test_threads_may_use_it_first_at_the_same_time(names):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", THREADS, *names], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "use",
    [
        "damo.distributed",
        pytest.param("damo.onnx.export", marks=needs_onnxruntime),
        pytest.param("damo.serving.export", marks=needs_onnxruntime),
        "damo.load_model",
    ],
)
def test_what_needs_torch_says_so_wherever_it_is(use):
    line = last_line(ABSENT.format(name="torch"), "import damo_torchrec as damo", use)
    assert line.startswith("ImportError: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")


def test_type_checkers_see_a_misspelt_name(tmp_path):
    pytest.importorskip("mypy", reason="mypy is no requirement of the tests: the set-up has it")
    program = tmp_path / "program.py"
    program.write_text("import damo_torchrec\ndamo_torchrec.EmbeddingStor\nreveal_type(damo_torchrec.__version__)\n")
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", "--cache-dir"]
    done = subprocess.run(
        [*command, str(tmp_path / "cache"), str(program)], capture_output=True, text=True, check=False
    )
    assert 'Module has no attribute "EmbeddingStor"' in done.stdout
    assert 'str"' in done.stdout


def test_annotations_can_be_resolved():
    for name in ("expire", "forget", "convert_table", "table"):
        assert typing.get_type_hints(getattr(damo_torchrec.EmbeddingStore, name))
