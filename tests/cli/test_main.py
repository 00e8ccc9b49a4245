"""`damo-torchrec`: what is printed, and exit statuses."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damage import Sample, flip, make_sample
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.cli import main as cli
from support import small_store
from training import collection


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture
def call(capsys):
    """Runs the tool: its exit status, what it printed, and what it printed as errors."""

    def run(*arguments: object) -> tuple[int, list[str], str]:
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return run


def test_info_tells_what_a_checkpoint_is(sample, call):
    status, lines, _ = call("info", sample.checkpoint)
    manifest = Manifest.read(sample.checkpoint)
    size = sum(file.stat().st_size for file in sample.checkpoint.rglob("*") if file.is_file())
    size -= (sample.checkpoint / "manifest.json").stat().st_size
    rows = {name: table.rows for name, table in manifest.tables.items()}
    assert status == 0
    assert lines == [
        f"checkpoint {sample.checkpoint}",
        f"step 0, seed 0, {size} bytes, with a dense part",
        "table  rows  dim  weights  optimizer        updates",
        f"a      {rows['a']}  8    float32  ROWWISE_ADAGRAD  0",
        f"b      {rows['b']}  4    float32  ROWWISE_ADAGRAD  0",
        f"half   {rows['half']}  5    float16  ROWWISE_ADAGRAD  0",
    ]


def test_info_lists_a_stores_checkpoints_and_tells_of_the_newest(sample, call, tmp_path):
    status, lines, _ = call("info", sample.store)
    names = ["step_0", *(f"step_0.{i}" for i in range(1, 8))]
    assert status == 0
    assert lines[:2] == [f"store {sample.store}", f"checkpoints, oldest first: {', '.join(names)}"]
    assert lines[2:] == call("info", sample.checkpoint)[1]

    shutil.copytree(sample.store, tmp_path / "store")
    damaged = tmp_path / "store" / "checkpoints" / "step_0.7" / "manifest.json"
    damaged.unlink()
    status, lines, _ = call("info", tmp_path / "store")
    assert status == 1
    assert str(damaged.parent) in lines[0]
    assert lines[3] == f"checkpoint {damaged.parent.with_name('step_0.6')}"


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


def test_repair_prints_what_was_saved_and_what_was_lost(sample, call, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    file = checkpoint / sample.files()[0]
    flip(file, 100)
    status, lines, err = call("repair", checkpoint, tmp_path / "out")
    before, after = Manifest.read(checkpoint).tables, Manifest.read(tmp_path / "out").tables
    assert (status, err) == (1, "")
    assert lines[0].startswith(f"rows of table 'a', ids [{-(2**63)}, ")
    assert f"): lost: {file}: Corruption: block checksum mismatch" in lines[0]
    assert lines[1] == f"{checkpoint} is repaired in {tmp_path / 'out'}"
    assert lines[2] == f"table 'a': {after['a'].rows} of {before['a'].rows} rows"
    assert after["a"].rows < before["a"].rows
    assert len(lines) == 5


def test_repair_of_a_sound_checkpoint_loses_nothing(sample, call, tmp_path):
    status, lines, _ = call("repair", sample.store, tmp_path / "out")
    assert status == 0
    assert lines[0] == f"{sample.checkpoint} is repaired in {tmp_path / 'out'}"
    assert call("verify", tmp_path / "out") == (0, [], "")


def test_repair_takes_the_tables_from_another_checkpoint(sample, call, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / "manifest.json").write_text("{}")
    status, lines, err = call("repair", checkpoint, tmp_path / "out")
    assert (status, lines) == (1, [])
    assert "--schema" in err
    assert not (tmp_path / "out").exists()
    status, lines, _ = call("repair", checkpoint, tmp_path / "out", "--schema", sample.checkpoint)
    assert status == 1
    assert lines[0].startswith(f"{checkpoint / 'manifest.json'}: expected ")
    assert f"table 'a': {Manifest.read(sample.checkpoint).tables['a'].rows} rows" in lines


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


def test_progress_is_shown_on_a_terminal_alone(sample, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert cli.main(["verify", str(sample.checkpoint)]) == 0
        rows = sum(table.rows for table in Manifest.read(sample.checkpoint).tables.values())
        assert (f"rows of {sample.checkpoint}: {rows} of {rows}" in stream.getvalue()) == shown
        assert stream.getvalue().endswith("\x1b[K" if shown else "")


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


def test_the_entry_point_is_the_tool():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert '[project.scripts]\ndamo-torchrec = "damo_torchrec.cli.main:main"\n' in project.read_text()
