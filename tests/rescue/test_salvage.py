"""`damo_torchrec.rescue.salvage`: what is left of the rows is opened where files are damaged, missing or too many."""

import shutil
from pathlib import Path

import pytest
import torch

from damage import DAMAGES, TABLE_FILE_DAMAGES, Model, make_sample
from damo_torchrec.rescue.repair import repair
from repairs import WHOLE, check, in_a_copy_of_the_store, repaired
from support import small_store


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


def test_a_table_file_without_any_manifest_may_have_been_one_of_several(sample, tmp_path):
    checkpoint = in_a_copy_of_the_store(sample, tmp_path)
    (checkpoint / "manifest.json").unlink()
    (checkpoint / "rows" / "CURRENT").unlink()
    (checkpoint / sample.files()[-1]).unlink()
    done = repair(checkpoint, tmp_path / "repaired", lambda *_: None)
    check(sample, done)
    assert {(loss.ids.first, loss.ids.end, loss.may_be_older) for loss in done.losses} == {(*WHOLE, True)}
