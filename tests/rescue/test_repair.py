"""`damo_torchrec.rescue.repair`: what a repaired checkpoint holds is what there was, and what it lacks is listed."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damage import DAMAGES, TABLE_FILE_DAMAGES, Model, flip, records_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.repair import repair
from mixed_run import collection, rows_of, update
from repairs import check, in_a_copy_of_the_store, repaired
from support import small_store


def without_files(manifest: Manifest) -> Manifest:
    return replace(manifest, files={}, id="")


def test_an_undamaged_checkpoint_is_saved_whole(sample, tmp_path):
    done = repaired(sample.copy(tmp_path / "checkpoint"))
    assert done.losses == done.findings == []
    assert check(sample, done) == {}
    assert records_of(done.target, tmp_path / "read") == sample.records
    before, after = Manifest.read(sample.checkpoint), Manifest.read(done.target)
    assert without_files(after) == without_files(before)
    assert done.expected == done.rows


@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
def test_a_damaged_dense_part_is_left_out_and_named(sample, tmp_path, damage):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    DAMAGES[damage](checkpoint / "model.pt")
    done = repaired(checkpoint)
    assert check(sample, done) == {}
    assert [finding.path for finding in done.findings] == [checkpoint / "model.pt"]
    assert not (done.target / "model.pt").exists()


def test_a_damaged_pickle_of_the_model_is_left_out_and_named(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    flip(checkpoint / "module.pickle", 10)
    done = repaired(checkpoint)
    assert [finding.path for finding in done.findings] == [checkpoint / "module.pickle"]
    assert (done.target / "model.pt").exists()
    assert not (done.target / "module.pickle").exists()


# ------------------------------------------------------------------ without a manifest


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "longer"])
def test_without_a_manifest_other_checkpoints_say_what_the_tables_are(sample, tmp_path, damage):
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    DAMAGES[damage](checkpoint / "manifest.json")
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    assert done.losses == []
    assert check(sample, done) == {}
    assert [finding.path.name for finding in done.findings] == ["manifest.json", "model.pt"]
    assert not (done.target / "model.pt").exists()


def test_without_a_manifest_iterations_are_those_of_the_rows(tmp_path):
    with small_store(tmp_path / "store") as store:
        ebc = collection(store, "t", "u")
        for i in range(5):
            update(ebc, {"t": [[i]], "u": [[i] if i < 3 else []]})
            if i == 0:
                store.checkpoint()
        checkpoint = store.checkpoint()
    before = Manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    after = Manifest.read(done.target)
    assert (after.step, after.seed) == (before.step, before.seed) == (5, 0)
    assert {name: table.number for name, table in after.tables.items()} == {"t": 1, "u": 2}
    assert {name: table.iter for name, table in after.tables.items()} == {"t": 5, "u": 3}


def test_a_manifest_can_be_named_and_must_be_where_there_is_none(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(damo.CorruptionError, match=r"checkpoint of the same store \(--schema\)"):
        repaired(checkpoint)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        repaired(checkpoint, tmp_path)
    assert not (tmp_path / "repaired-checkpoint").exists()
    assert check(sample, repaired(checkpoint, sample.checkpoint)) == {}


def test_tables_that_no_manifest_knows_are_listed(sample, tmp_path):
    with small_store(tmp_path / "store") as store:
        collection(store, "old").train()
        store.table("old").set([1], torch.ones(1, 4))
        store.checkpoint()
        collection(store, "new").train()
        store.table("new").set([1, 2], torch.ones(2, 4))
        checkpoint = store.checkpoint()
    (checkpoint / "manifest.json").unlink()
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    assert done.rows == {"old": 1}
    assert "no table has the number 2" in [finding.found for finding in done.findings]


def test_checkpoints_that_differ_in_what_a_table_is_are_not_guessed_from(tmp_path):
    with small_store(tmp_path / "store") as store:
        collection(store, "old")
        store.table("old").set([1], torch.ones(1, 4))
    with damo.EmbeddingStore(tmp_path / "store", restore="step_0") as store:
        collection(store, "new")
        store.table("new").set([1], torch.ones(1, 4))
        store.checkpoint()
        store.table("new").set([2], torch.ones(1, 4))
        checkpoint = store.checkpoint()
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(damo.CorruptionError, match="name one by --schema"):
        repair(checkpoint, tmp_path / "repaired", lambda *_: None)


# ------------------------------------------------------------------ the new checkpoint


@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_log_that_is_there_twice_is_read_once(tmp_path, with_manifest):
    with small_store(tmp_path / "store") as store:
        update(collection(store, "t"), {"t": [list(range(2000))]})
        checkpoint, other = store.checkpoint(), store.checkpoint(tmp_path / "other")
        expected = rows_of(store)
    (log,) = (checkpoint / "rows").glob("*.log")
    shutil.copy(log, log.with_name("000099.log"))
    if not with_manifest:
        (checkpoint / "manifest.json").unlink()
    repair(checkpoint, tmp_path / "saved", lambda *_: None, schemas=other)
    with damo.EmbeddingStore(tmp_path / "saved", memory_budget="64MiB", read_only=True) as saved:
        saved.table("t")
        assert rows_of(saved) == expected


def test_a_store_goes_on_from_a_repaired_checkpoint(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    TABLE_FILE_DAMAGES["block in the middle"](checkpoint / sample.files()[0])
    done = repaired(checkpoint)
    with damo.EmbeddingStore(tmp_path / "store", restore=done.target) as store:
        Model(store)
        assert {name: len(table) for name, table in store.tables().items()} == done.rows


def test_a_model_loads_a_repaired_checkpoint_though_its_store_stands_at_the_damaged_one(sample, tmp_path):
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    TABLE_FILE_DAMAGES["block in the middle"](checkpoint / sample.files()[0])
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        with torch.no_grad():
            model.dense.weight.zero_()
        damo.load_model(done.target, model)
        assert not torch.equal(model.dense.weight, torch.zeros(1, 2))
        found = {name: len(table.to_torch()[0]) for name, table in store.tables().items()}
        assert found == done.rows


def test_a_store_stands_for_its_newest_checkpoint(sample, tmp_path):
    done = repair(sample.store, tmp_path / "repaired", lambda *_: None)
    assert done.source == sample.checkpoint
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(damo.CorruptionError, match=rf"{checkpoint}.*name the one to repair"):
        repair(tmp_path / "store", tmp_path / "second", lambda *_: None)


def test_the_source_is_left_as_it_is_and_nothing_else_remains(sample, tmp_path):
    def contents() -> dict[Path, bytes | None]:
        return {p: p.read_bytes() if p.is_file() else None for p in checkpoint.rglob("*")}

    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / sample.files()[-1]).unlink()
    flip(checkpoint / sample.files()[0], 100)
    before = contents()
    done = repaired(checkpoint)
    assert contents() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", done.target.name]
    assert sorted(p.name for p in done.target.iterdir()) == [
        "manifest.json",
        "model.pt",
        "module.pickle",
        "origin.json",
        "rows",
    ]


def test_an_existing_target_is_refused(sample, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        repair(sample.store, tmp_path / "there", lambda *_: None)


def test_a_target_in_the_damaged_store_is_refused(sample, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(sample.store, store)
    newest = max((store / "checkpoints").iterdir())
    for source in (store, newest):
        for target in (store / "repaired", store / "checkpoints" / "step_99", newest / "repaired"):
            with pytest.raises(ValueError, match="is inside the damaged store"):
                repair(source, target, lambda *_: None)
    assert repair(newest, tmp_path / "repaired", lambda *_: None).losses == []


# ------------------------------------------------------------------ what somebody put there


@pytest.mark.parametrize("name", ["rows/CURRENT", "rows/000099.sst", "rows/000099.log"])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_fifos_and_links_are_not_waited_for_nor_read(sample, tmp_path, name, with_manifest):
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    if not with_manifest:
        (checkpoint / "manifest.json").unlink()
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    assert check(sample, done) == {}
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to(tmp_path / "secret")
    done = repair(checkpoint, tmp_path / "again", lambda *_: None)
    assert check(sample, done) == {}


def test_rows_behind_a_link_are_refused(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    shutil.move(checkpoint / "rows", tmp_path / "elsewhere")
    (checkpoint / "rows").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(damo.CorruptionError, match="symbolic link"):
        repaired(checkpoint)
    with pytest.raises(damo.CorruptionError, match="directory of rows"):
        damo.EmbeddingStore(checkpoint, read_only=True)
