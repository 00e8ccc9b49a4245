"""`damo-torchrec verify`."""

import re
import shutil
import subprocess
import sys

import pytest
import torch

import damo_torchrec as damo
from damage import flip
from damo_torchrec.checkpoints.manifest import Manifest
from mixed_run import collection
from support import small_store


def test_verify_of_a_sound_store_says_how_much_it_has_read(sample, call):
    status, lines, err = call("verify", sample.store)
    checkpoints = sorted((sample.store / "checkpoints").iterdir())
    assert (status, err) == (0, "")
    for line, checkpoint in zip(lines, checkpoints, strict=False):
        tables = Manifest.read(checkpoint).tables
        files = sum(path.is_file() for path in checkpoint.rglob("*"))
        rows = sum(table.rows for table in tables.values())
        assert line == f"{checkpoint}: sound: {files} files, {len(tables)} tables, {rows} rows"
    assert lines[len(checkpoints) :] == ["8 of 8 checkpoints are sound"]


def test_verify_of_a_damaged_store_says_what_is_sound_beside_the_damage(sample, call, tmp_path):
    shutil.copytree(sample.store, tmp_path / "store")
    checkpoint = tmp_path / "store" / "checkpoints" / "step_0.7"
    files = sum(path.is_file() for path in checkpoint.rglob("*"))
    tables = Manifest.read(checkpoint).tables
    rows = sum(table.rows for table in tables.values())
    flip(checkpoint / sample.files()[0], 100)
    (checkpoint.with_name("step_0.6") / "manifest.json").unlink()
    status, lines, _ = call("verify", tmp_path / "store")
    assert status == 1
    (damaged,) = (line for line in lines if line.startswith(f"{checkpoint}: damaged: "))
    sound = re.fullmatch(
        rf".*: of it {files - 1} of {files} files and (\d+) of {rows} rows of {len(tables)} tables are sound", damaged
    )
    assert 0 < int(sound[1]) < rows
    assert any(line.startswith(f"{checkpoint.with_name('step_0.6')}: damaged: ") for line in lines)
    assert lines[-1] == "6 of 8 checkpoints are sound"


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
    assert lines[3:] == ["0 of 1 checkpoints are sound"]


@pytest.mark.slow
def test_the_program_verifies_a_store_that_another_process_trains_into(tmp_path):
    with small_store(tmp_path / "store") as store:
        collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
        store.checkpoint()
        command = [sys.executable, "-m", "damo_torchrec", "verify", str(store.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 tables, 1000 rows" in done.stdout
        with pytest.raises(damo.StoreLockedError):
            damo.EmbeddingStore(store.path)
