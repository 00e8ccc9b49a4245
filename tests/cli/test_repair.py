"""`damo-torchrec repair`."""

from damage import flip
from damo_torchrec.checkpoints.manifest import Manifest


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
    assert call("verify", tmp_path / "out")[0] == 0


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
