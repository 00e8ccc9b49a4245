"""`damo-torchrec verify`."""

import subprocess
import sys

import pytest
import torch

import damo_torchrec as damo
from damage import flip
from mixed_run import collection
from support import small_store


def test_verify_of_a_sound_store_says_nothing(sample, call):
    assert call("verify", sample.store) == (0, [], "")


def test_verify_prints_a_line_for_each_damaged_file(sample, call, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    size = (checkpoint / "model.pt").stat().st_size
    (checkpoint / "model.pt").write_bytes(b"?")
    flip(checkpoint / sample.files()[0], 100)
    status, lines, err = call("verify", checkpoint)
    assert (status, err) == (1, "")
    assert lines[0] == f"{checkpoint / 'model.pt'}: expected {size} bytes, found 1 bytes"
    assert lines[1].startswith(f"{checkpoint / sample.files()[0]}: expected ")
    assert "block checksum mismatch" in lines[1]
    assert len(lines) == 2


@pytest.mark.slow
def test_the_program_verifies_a_store_that_another_process_trains_into(tmp_path):
    with small_store(tmp_path / "store") as store:
        collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
        store.checkpoint()
        command = [sys.executable, "-m", "damo_torchrec", "verify", str(store.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with pytest.raises(damo.StoreLockedError):
            damo.EmbeddingStore(store.path)
