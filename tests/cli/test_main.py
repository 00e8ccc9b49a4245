"""`damo-torchrec`: what all of its commands share."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.cli import main as cli

# The program where torch, TorchRec and FBGEMM are not installed.
WITHOUT_TORCH = """
import sys
sys.modules.update(torch=None, torchrec=None, fbgemm_gpu=None)
sys.argv[0] = "damo-torchrec"
from damo_torchrec.cli.main import main
sys.exit(main())
"""


def run_without_torch(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_wrong_usage_has_a_status_of_its_own(sample, call, tmp_path):
    for arguments in [
        ("info", tmp_path),
        ("verify", tmp_path / "absent"),
        ("repair", tmp_path, tmp_path / "out"),
        ("repair", sample.store, tmp_path),
    ]:
        status, lines, err = call(*arguments)
        assert (status, lines) == (2, [])
        assert err.startswith(f"damo-torchrec: {tmp_path}")
    for arguments in [[], ["verify"], ["mend", "x"]]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2


def test_the_entry_point_is_the_tool():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert '[project.scripts]\ndamo-torchrec = "damo_torchrec.cli.main:main"\n' in project.read_text()


def test_rows_are_looked_after_without_torch(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB"):
        pass
    assert run_without_torch("info", tmp_path / "store")[0] == 0
    status, out, _ = run_without_torch("verify", tmp_path / "store")
    assert status == 0
    assert "checkpoints are sound" in out
    assert run_without_torch("repair", tmp_path / "store", tmp_path / "repaired")[0] == 0


def test_the_dense_part_needs_torch_and_says_so(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = torch.nn.ModuleList([damo.Embedding(4, store=store), torch.nn.Linear(2, 1)])
        damo.save_model(model, path=tmp_path / "checkpoint")
    assert run_without_torch("info", tmp_path / "checkpoint")[0] == 0
    status, _, err = run_without_torch("verify", tmp_path / "checkpoint")
    assert status == 2
    assert err.startswith("damo-torchrec: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")


def test_a_conversion_needs_torch_and_says_so(tmp_path):
    status, _, err = run_without_torch("convert", "damo-dump", tmp_path / "dump", tmp_path / "store")
    assert status == 2
    assert err.startswith("damo-torchrec: damo_torchrec needs torch, TorchRec and FBGEMM in versions that fit")
