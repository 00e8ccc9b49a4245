"""`damo_torchrec.rescue.verification`: all damage is found, and every file that has some is named."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damage import DAMAGES, TABLE_FILE_DAMAGES, Model, flip, make_sample
from damo_torchrec import _core
from damo_torchrec.checkpoints.file_entry import Finding
from damo_torchrec.checkpoints.listing import checkpoints_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.verification import verify
from mixed_run import collection
from support import small_store


def findings(path: Path) -> list[Finding]:
    return list(verify(path, lambda *_: None))


def named(path: Path) -> set[str]:
    """The files that findings name, by their names in the checkpoint."""
    found = findings(path)
    assert all(finding.expected and finding.found for finding in found)
    assert all(str(finding).startswith(f"{finding.path}: expected ") for finding in found)
    names = [str(finding.path.relative_to(path)) for finding in found]
    assert len(set(names)) == len(names), "a file is named twice"
    return set(names)


def rewrite_manifest(checkpoint: Path, **changes: object) -> None:
    """Writes a manifest with a right checksum that says something else."""
    manifest = Manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    replace(manifest, **changes).with_files(checkpoint).write(checkpoint)


def test_the_sample_has_rows_in_several_files_and_older_ones_beneath(sample):
    assert len(sample.files()) >= 2
    assert len(sample.records) > 10_000


def test_an_undamaged_store_has_no_findings(sample):
    assert findings(sample.store) == []
    assert len(checkpoints_of(sample.store)) == 8


@pytest.mark.parametrize("damage", TABLE_FILE_DAMAGES.values(), ids=TABLE_FILE_DAMAGES)
def test_a_damaged_table_file_is_named(sample, tmp_path, damage):
    for file in sample.files():
        checkpoint = sample.copy(tmp_path / Path(file).name)
        damage(checkpoint / file)
        assert named(checkpoint) == {file}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_any_other_damaged_file_is_named(sample, tmp_path, damage):
    kinds = set()
    for i, file in enumerate(["manifest.json", *sample.other_files()]):
        kinds.add(Path(file).name.partition("-")[0])
        checkpoint = sample.copy(tmp_path / str(i))
        damage(checkpoint / file)
        expected = set() if (file, damage) == ("manifest.json", DAMAGES["longer"]) else {file}  # white space
        assert named(checkpoint) == expected
    beside = {"line.json", "manifest.json", "model.pt", "module.pickle", "origin.json"}
    assert kinds == {*beside, "CURRENT", "MANIFEST", "OPTIONS"}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_log_is_named(journal_sample, tmp_path, damage):
    assert len(journal_sample.logs()) == 3
    for file in journal_sample.logs():
        checkpoint = journal_sample.copy(tmp_path / Path(file).name)
        assert named(checkpoint) == set()
        damage(checkpoint / file)
        assert named(checkpoint) == {file}
        with pytest.raises(damo.CorruptionError, match=r"damaged|missing|bytes"):
            damo.EmbeddingStore(tmp_path / "store", restore=checkpoint)
        with pytest.raises(damo.CorruptionError, match=r"damaged|missing|bytes"):
            damo.EmbeddingStore(checkpoint, read_only=True)


def test_each_log_is_read_from_end_to_end_once(journal_sample, tmp_path, monkeypatch):
    """Whether the manifest names them, or is damaged and names none."""
    read = []

    def verify_log_file(path: str) -> None:
        read.append(Path(path))
        verify_log(path)

    verify_log = _core.verify_log_file
    monkeypatch.setattr(_core, "verify_log_file", verify_log_file)
    assert named(journal_sample.checkpoint) == set()
    assert read == [journal_sample.checkpoint / log for log in journal_sample.logs()]

    read.clear()
    checkpoint = journal_sample.copy(tmp_path / "checkpoint")
    (checkpoint / "manifest.json").write_text("{}")
    assert named(checkpoint) == {"manifest.json"}
    assert read == [checkpoint / log for log in journal_sample.logs()]


def test_no_bit_of_a_table_file_that_holds_something_changes_unseen(sample, tmp_path):
    """Wherever it is: it is found, or RocksDB's blocks leave the byte unused, and it is zero."""
    file = sample.files()[-1]
    checkpoint = sample.copy(tmp_path / "checkpoint")
    whole = (checkpoint / file).read_bytes()
    for offset in [*range(50, len(whole), len(whole) // 40), *range(len(whole) - 53, len(whole))]:
        flip(checkpoint / file, offset, offset % 8)
        assert named(checkpoint) == {file} or whole[offset] == 0
        (checkpoint / file).write_bytes(whole)


def test_every_damaged_file_is_named_not_only_the_first(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    files = [*sample.files(), *sample.other_files()]
    for file in files:
        (checkpoint / file).write_bytes((checkpoint / file).read_bytes()[:-1])
    (checkpoint / "rows" / "000001.sst").write_bytes(b"?")
    assert named(checkpoint) == {*files, "rows/000001.sst"}


def test_files_that_are_too_many_are_named(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / "rows" / "LOG").write_text("")
    (checkpoint / "rows" / "more").mkdir()
    (checkpoint / "notes.txt").write_text("a user's own")
    assert named(checkpoint) == {"rows/LOG", "rows/more"}


def test_a_table_file_of_another_store_is_named(sample, tmp_path):
    """It has the name, the size and sound blocks: RocksDB's manifest knows it apart."""
    other = make_sample(tmp_path)
    for file in sample.files():
        checkpoint = sample.copy(tmp_path / Path(file).name)
        shutil.copy(other.checkpoint / file, checkpoint / file)
        assert (checkpoint / file).stat().st_size == (sample.checkpoint / file).stat().st_size
        assert named(checkpoint) == {file}


def test_rows_that_are_not_what_the_manifest_says_are_found(sample, tmp_path):
    tables = dict(Manifest.read(sample.checkpoint).tables)
    checkpoint = sample.copy(tmp_path / "checkpoint")

    def with_a(**changes: object) -> list[Finding]:
        rewrite_manifest(checkpoint, tables={**tables, "a": replace(tables["a"], **changes)}, next_table_number=100)
        return findings(checkpoint)

    n = tables["a"].rows
    (finding,) = with_a(rows=n + 1)
    assert finding == Finding(checkpoint / "rows", f"{n + 1} rows of table 'a'", str(n))
    (finding,) = with_a(schema=replace(tables["a"].schema, dim=9))
    assert "rows of table 'a', ids [-2000, " in finding.expected
    assert "expected a row of 48 bytes, found 44" in finding.found
    rows, deletions = with_a(number=99)
    assert rows.found == deletions.found == "no table has the number 1"


def test_a_dense_part_of_another_checkpoint_is_named(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / "model.pt").write_bytes(next(sample.store.glob("checkpoints/step_0.1/model.pt")).read_bytes())
    rewrite_manifest(checkpoint)
    (finding,) = findings(checkpoint)
    assert finding.path == checkpoint / "model.pt"
    assert "another checkpoint" in finding.found


def test_a_manifest_of_a_later_version_is_named_with_both_versions(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    document = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({**document, "format_version": 77}))
    (finding,) = findings(checkpoint)
    assert finding.path == checkpoint / "manifest.json"
    assert "format version 77" in finding.found


def test_all_checkpoints_of_a_store_are_checked(sample, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(sample.store, store)
    (store / "checkpoints" / "step_0" / "manifest.json").unlink()
    (store / "checkpoints" / "step_0.2" / "model.pt").unlink()
    shutil.rmtree(store / "checkpoints" / "step_0.3" / "rows")
    paths = {str(finding.path.relative_to(store / "checkpoints")) for finding in findings(store)}
    assert {path for path in paths if not path.startswith("step_0.3")} == {"step_0/manifest.json", "step_0.2/model.pt"}
    assert "step_0.3/rows" in paths


def test_a_store_without_checkpoints_is_damaged_and_what_is_no_store_refused(tmp_path):
    (tmp_path / "LOCK").write_text("")
    assert [finding.path for finding in findings(tmp_path)] == [tmp_path]
    (tmp_path / "LOCK").unlink()
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="neither a store nor a checkpoint"):
            findings(path)


def test_nothing_is_written_and_the_store_may_be_in_use(tmp_path):
    def state(path: Path) -> dict[Path, tuple[int, int]]:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [path, *path.rglob("*")]}

    with small_store(tmp_path / "store") as store:
        ebc = collection(store, "t")
        store.table("t").set(range(1000), torch.ones(1000, 4))
        checkpoint = store.checkpoint()
        before = state(store.path / "checkpoints")
        for _ in verify(store.path, lambda *_: store.table("t").set([5], torch.zeros(1, 4))):
            pytest.fail("a finding")
        assert state(store.path / "checkpoints") == before
        assert store.table("t").get([5]).sum() == 0
        os.chmod(checkpoint / "rows", 0o555)
        assert findings(checkpoint) == []
        os.chmod(checkpoint / "rows", 0o755)
        assert ebc.tables()[0].name == "t"


def test_progress_ends_with_all_rows(sample):
    told = []
    assert list(verify(sample.checkpoint, lambda *figures: told.append(figures))) == []
    rows = sum(table.rows for table in Manifest.read(sample.checkpoint).tables.values())
    assert told[-1] == (f"rows of {sample.checkpoint}", rows, rows)


def test_the_model_of_the_sample_loads(sample, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", restore=sample.checkpoint) as store:
        damo.load_model(sample.checkpoint, Model(store))
