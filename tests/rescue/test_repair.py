"""`damo_torchrec.rescue.repair`: what a repaired checkpoint holds is what there was, and what it lacks is listed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damage import DAMAGES, TABLE_FILE_DAMAGES, Model, Records, Sample, flip, make_sample, records_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.repair import Loss, Repair, repair
from damo_torchrec.rescue.verification import verify
from support import small_store
from training import collection, update

DELETED = 1 << 31
WHOLE = (-(2**63), 2**63)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def journal_sample(tmp_path_factory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("journal"), journal=True)


def repaired(path: Path, schemas: Path | None = None) -> Repair:
    target = path.parent / f"repaired-{path.name}"
    return repair(path, target, lambda *_: None, schemas)


def check(sample: Sample, done: Repair) -> Records:
    """Checks what was saved against what there was, and returns what is missing.

    Every record that is missing is listed; so is one that is older, or that had been deleted, as possibly older.
    """
    manifest = Manifest.read(done.target)
    saved = records_of(done.target, done.target.parent / "read")
    numbers = {table.number: name for name, table in manifest.tables.items()}
    assert list(verify(done.target, lambda *_: None)) == []

    def listed(key: tuple[int, int]) -> list[Loss]:
        number, row_id = key
        return [
            loss
            for loss in done.losses
            if (loss.ids.table, loss.ids.deletions) == (numbers[number & ~DELETED], bool(number & DELETED))
            and loss.ids.first <= row_id < loss.ids.end
        ]

    missing = {key: record for key, record in sample.records.items() if key not in saved}
    assert all(listed(key) for key in missing)
    different = [key for key, record in saved.items() if sample.records.get(key) != record]
    assert all(any(loss.may_be_older for loss in listed(key)) for key in different)
    for name, table in manifest.tables.items():
        assert done.rows[name] == table.rows == sum(number == table.number for number, _ in saved)
    return missing


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


@pytest.mark.parametrize("damage", ["first block", "block in the middle"])
def test_rows_around_a_block_that_cannot_be_read_are_saved_and_none_is_older(sample, tmp_path, damage):
    for file in sample.files():
        checkpoint = sample.copy(tmp_path / Path(file).name)
        TABLE_FILE_DAMAGES[damage](checkpoint / file)
        done = repaired(checkpoint)
        assert 0 < len(check(sample, done)) < 600  # in one block, and in other files between its ids
        assert {loss.path for loss in done.losses} == {checkpoint / file}
        assert all("checksum" in loss.reason and not loss.may_be_older for loss in done.losses)
        assert done.findings == []


def test_blocks_between_blocks_that_cannot_be_read_are_saved(sample, tmp_path):
    oldest = Sample(sample.store, *_oldest(sample, tmp_path))
    checkpoint = oldest.copy(tmp_path / "checkpoint")
    (file,) = oldest.files()
    for offset in range(100, (checkpoint / file).stat().st_size - 40_000, 2 * 4096):
        flip(checkpoint / file, offset)
    done = repaired(checkpoint)
    assert 0.4 < len(check(oldest, done)) / len(oldest.records) < 0.6
    assert len(done.losses) > 20


def _oldest(sample: Sample, tmp_path: Path) -> tuple[Path, Records]:
    """The first checkpoint with rows: all are in one file."""
    checkpoint = sample.checkpoint.parent / "step_0.1"
    return checkpoint, records_of(checkpoint, tmp_path / "read")


@pytest.mark.parametrize("damage", ["deleted", "truncated", "part of the index"])
def test_a_lost_file_makes_older_only_what_older_files_hold(sample, tmp_path, damage):
    """Of the files, which are numbered by age, the first holds the oldest rows."""
    for i, file in enumerate(sample.files()):
        checkpoint = sample.copy(tmp_path / Path(file).name)
        TABLE_FILE_DAMAGES[damage](checkpoint / file)
        done = repaired(checkpoint)
        assert len(check(sample, done)) > 0 or i > 0
        assert {loss.may_be_older for loss in done.losses} == {i > 0}
        assert {loss.path for loss in done.losses} == {checkpoint / file}
        assert done.findings == []


@pytest.mark.parametrize("damage", TABLE_FILE_DAMAGES.values(), ids=TABLE_FILE_DAMAGES)
def test_what_a_damaged_table_file_costs_is_listed(sample, tmp_path, damage):
    file = sample.files()[-1]
    checkpoint = sample.copy(tmp_path / "checkpoint")
    damage(checkpoint / file)
    done = repaired(checkpoint)
    check(sample, done)
    assert bool(done.losses) == (damage != TABLE_FILE_DAMAGES["format version"])  # which blocks do not depend on
    assert all(loss.path == checkpoint / file for loss in done.losses)
    assert done.findings == []


def test_a_journal_is_saved_whole(journal_sample, tmp_path):
    done = repaired(journal_sample.copy(tmp_path / "checkpoint"))
    assert done.losses == done.findings == []
    assert check(journal_sample, done) == {}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_a_damaged_log_costs_is_listed(journal_sample, tmp_path, damage):
    """Older records may take the place of those that were in it."""
    for file in journal_sample.logs():
        checkpoint = journal_sample.copy(tmp_path / Path(file).name)
        damage(checkpoint / file)
        done = repaired(checkpoint)
        check(journal_sample, done)
        assert {loss.path for loss in done.losses} == {checkpoint / file}
        assert all((loss.ids.first, loss.ids.end) == WHOLE and loss.may_be_older for loss in done.losses)
        assert done.findings == []


def test_a_journal_is_saved_without_rocksdbs_own_files(journal_sample, tmp_path):
    checkpoint = journal_sample.copy(tmp_path / "checkpoint")
    next((checkpoint / "rows").glob("MANIFEST-*")).unlink()
    done = repaired(checkpoint)
    assert done.losses == done.findings == []
    assert check(journal_sample, done) == {}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
@pytest.mark.parametrize("kind", ["CURRENT", "MANIFEST-*", "OPTIONS-*"])
def test_without_rocksdbs_own_files_all_rows_are_saved(sample, tmp_path, kind, damage):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (file,) = (checkpoint / "rows").glob(kind)
    DAMAGES[damage](file)
    done = repaired(checkpoint)
    assert done.losses == done.findings == []
    assert check(sample, done) == {}


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


def test_several_damaged_files_at_once(sample, tmp_path):
    """RocksDB's manifest is gone, and a block in each of two files: without it, they are lost as a whole."""
    checkpoint = sample.copy(tmp_path / "checkpoint")
    next((checkpoint / "rows").glob("MANIFEST-*")).unlink()
    files = sample.files()[:2]
    for file in files:
        TABLE_FILE_DAMAGES["block in the middle"](checkpoint / file)
    done = repaired(checkpoint)
    check(sample, done)
    assert {loss.path for loss in done.losses} == {checkpoint / file for file in files}
    assert all((loss.ids.first, loss.ids.end) == WHOLE and loss.may_be_older for loss in done.losses)


def test_all_table_files_lost_saves_no_row_and_says_so(sample, tmp_path):
    checkpoint = sample.copy(tmp_path / "checkpoint")
    for file in sample.files():
        (checkpoint / file).unlink()
    done = repaired(checkpoint)
    assert len(check(sample, done)) == len(sample.records)
    assert done.rows == {"a": 0, "b": 0, "half": 0}


def test_a_table_file_of_another_store_is_not_taken_for_the_checkpoints(sample, tmp_path):
    other = make_sample(tmp_path)
    for file in (sample.files()[0], sample.files()[-1]):
        checkpoint = sample.copy(tmp_path / Path(file).name)
        shutil.copy(other.checkpoint / file, checkpoint / file)
        done = repaired(checkpoint)
        check(sample, done)
        assert {loss.path for loss in done.losses} == {checkpoint / "rows", checkpoint / file}


def test_a_table_file_of_another_size_is_not_taken_for_the_checkpoints(sample, tmp_path):
    """It is sound, of the same store, and RocksDB's manifest is not there to tell."""
    checkpoint = sample.copy(tmp_path / "checkpoint")
    (checkpoint / "rows" / "CURRENT").unlink()
    first, last = sample.files()[0], sample.files()[-1]
    shutil.copy(checkpoint / first, checkpoint / last)
    done = repaired(checkpoint)
    check(sample, done)
    assert {(loss.path, loss.may_be_older) for loss in done.losses} == {(checkpoint / last, True)}


def test_a_file_that_is_too_many_is_not_read(sample, tmp_path):
    """Newer rows of another store, under a name that the manifest does not know."""
    with small_store(tmp_path / "other") as store:
        Model(store)
        for _ in range(3):
            store.table("a").set(range(1000), torch.zeros(1000, 8))
            store.flush()
            other = store.checkpoint()
    checkpoint = sample.copy(tmp_path / "checkpoint")
    shutil.copy(next((other / "rows").glob("*.sst")), checkpoint / "rows" / "000099.sst")
    (checkpoint / "rows" / "CURRENT").unlink()
    done = repaired(checkpoint)
    assert check(sample, done) == {}
    assert done.losses == done.findings == []


# ------------------------------------------------------------------ without a manifest


def in_a_copy_of_the_store(sample: Sample, tmp_path: Path) -> Path:
    shutil.copytree(sample.store, tmp_path / "store")
    return tmp_path / "store" / "checkpoints" / sample.checkpoint.name


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


def test_a_table_file_without_any_manifest_may_have_been_one_of_several(sample, tmp_path):
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "rows" / "CURRENT").unlink()
    (checkpoint / sample.files()[-1]).unlink()
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    check(sample, done)
    assert {(loss.ids.first, loss.ids.end, loss.may_be_older) for loss in done.losses} == {(*WHOLE, True)}


# ------------------------------------------------------------------ the new checkpoint


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
    assert sorted(p.name for p in done.target.iterdir()) == ["manifest.json", "model.pt", "module.pickle", "rows"]


def test_an_existing_target_is_refused(sample, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        repair(sample.store, tmp_path / "there", lambda *_: None)


def test_all_of_int64_is_searched_for_readable_rows(tmp_path):
    """The unreadable block reaches to the last id of one table and to the first of the next."""
    least, largest = WHOLE[0], WHOLE[1] - 1
    with small_store(tmp_path / "store") as store:
        collection(store, "t", "u")
        for name in ("t", "u"):
            ids = torch.arange(100)
            ids = torch.cat([ids + least, ids * 2**40, largest - ids])
            store.table(name).set(ids, torch.rand(len(ids), 4))
        store.flush()
        checkpoint = store.checkpoint()
    made = Sample(tmp_path / "store", checkpoint, records_of(checkpoint, tmp_path / "read"))
    (file,) = made.files()
    ends: set[tuple[str, int]] = set()
    for block in range(12):  # as many as there are until the last id's, which ends the test
        damaged = made.copy(tmp_path / str(block))
        flip(damaged / file, 4096 * block + 20)
        done = repaired(damaged)
        assert 0 < len(check(made, done)) < 200
        ends |= {(loss.ids.table, end) for loss in done.losses for end in (loss.ids.first, loss.ids.end)}
        if ("u", 2**63) in ends:
            break
    assert {("t", least), ("t", 2**63), ("u", least), ("u", 2**63)} <= ends
