import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import damo_torchrec as damo
from damo_torchrec.distributed.dense_reader import DenseReader

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),  # torch 2.9's writer
]

TENSORS = {
    "half": torch.arange(4, dtype=torch.bfloat16),
    "whole": torch.arange(6, dtype=torch.int64).reshape(2, 3),
    "one": torch.tensor(2.5, dtype=torch.float64),
}


def _saved(where: Path) -> set[str]:
    save(TENSORS, storage_writer=FileSystemWriter(where / "dense"), no_dist=True)
    return {f"dense/{path.name}" for path in (where / "dense").iterdir()}


def test_reads_what_torch_wrote(tmp_path: Path) -> None:
    names = _saved(tmp_path)
    read = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    load(read, storage_reader=DenseReader(tmp_path, names), no_dist=True)
    assert all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)


class _Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/that-nobody-makes",)


@pytest.mark.parametrize("what", [_Code(), {"a": 1}], ids=["code", "a dict"])
def test_runs_no_code_and_takes_nothing_else(tmp_path: Path, what: object) -> None:
    names = _saved(tmp_path)
    (tmp_path / "dense" / ".metadata").write_bytes(pickle.dumps(what))
    with pytest.raises(damo.CorruptionError, match=r"\.metadata is damaged"):
        DenseReader(tmp_path, names).read_metadata()
    assert not Path("/tmp/that-nobody-makes").exists()


def test_reads_no_file_that_is_not_of_the_checkpoint(tmp_path: Path) -> None:
    names = _saved(tmp_path)
    with pytest.raises(damo.CorruptionError, match="files that the checkpoint does not have"):
        DenseReader(tmp_path, {name for name in names if not name.endswith(".distcp")}).read_metadata()
