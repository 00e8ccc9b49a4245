"""Repairs of damaged samples, and what has to hold of each of them."""

import shutil
from pathlib import Path

from damage import Records, Sample, records_of
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.repair import Loss, Repair, repair
from damo_torchrec.rescue.verification import verify

DELETED = 1 << 31
WHOLE = (-(2**63), 2**63)  # the ids of a table, from the first to the one behind the last


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


def in_a_copy_of_the_store(sample: Sample, tmp_path: Path) -> Path:
    shutil.copytree(sample.store, tmp_path / "store")
    return tmp_path / "store" / "checkpoints" / sample.checkpoint.name
