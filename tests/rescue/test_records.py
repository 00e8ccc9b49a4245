"""`damo_torchrec.rescue.records`: rows are read past blocks that cannot be read, and none between them is left out."""

from pathlib import Path

import pytest
import torch

from damage import TABLE_FILE_DAMAGES, Records, Sample, flip, records_of
from mixed_run import collection
from repairs import WHOLE, check, repaired
from support import small_store


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
