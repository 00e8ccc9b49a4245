"""`damo_torchrec.checkpoints.retention`: the newest checkpoints of one keeper and one line of states stay."""

import logging
from pathlib import Path

import pytest

from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine
from damo_torchrec.checkpoints.in_use import InUse
from damo_torchrec.checkpoints.layout import removed_name
from damo_torchrec.checkpoints.listing import checkpoints_at
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.origin import MANAGER, STORE, Origin
from damo_torchrec.checkpoints.retention import Retention
from damo_torchrec.checkpoints.table_entry import InitializerNumbers, TableEntry, TableSchema
from damo_torchrec.checkpoints.temporary_directory import mark_temporary

OURS = "0" * 32
SCHEMA = TableSchema(
    dim=4,
    optimizer={"name": "SGD", "initial_accumulator_value": 0.0},
    initializer={"name": "Constant", "value": 0.0},
    numbers=InitializerNumbers(a=0.0, b=0.0, low=0.0, high=1.0),
)


def make(where: Path, step: int, sequence: int, origin: Origin | None, *files: str) -> Path:
    path = where / f"step_{step}"
    path.mkdir()
    if origin is not None:
        (path / "origin.json").write_bytes(origin.dump())
    for name in files:
        (path / name).write_text("")
    tables = {"t": TableEntry(number=1, schema=SCHEMA, iter=step, rows=0)}
    manifest = Manifest(seed=0, step=step, sequence=sequence, next_table_number=2, tables=tables)
    manifest.with_files(path).write(path)
    return path


@pytest.fixture
def directory(tmp_path) -> Path:
    """Checkpoints of steps 3, 1, 4 and 2, made in this order."""
    for sequence, step in enumerate([3, 1, 4, 2], 5):
        make(tmp_path, step, sequence, Origin(OURS, STORE))
    return tmp_path


def apply(directory: Path, keep: int | None, line: str = OURS, **arguments: Path) -> list[str]:
    return [path.name for path in Retention(keep).apply(CheckpointLine(directory, line), STORE, **arguments)]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_stay_whatever_their_steps(directory):
    assert apply(directory, 3) == ["step_3"]
    assert checkpoints_at(directory) == [directory / f"step_{step}" for step in (1, 4, 2)]
    assert apply(directory, 3) == []
    assert apply(directory, 1) == ["step_1", "step_4"]
    assert names(directory) == ["step_2"]


def test_without_a_number_all_stay(directory):
    assert apply(directory, None) == []
    assert len(checkpoints_at(directory)) == 4


def test_other_lines_and_what_others_keep_are_neither_counted_nor_removed(directory, caplog):
    others = [Origin("1" * 32, STORE), Origin(OURS, MANAGER), Origin(OURS), None]
    made = [make(directory, 10 + i, 10 + i, origin).name for i, origin in enumerate(others)]
    line = CheckpointLine(directory, OURS)
    for keep in (3, 1):
        Retention(keep).apply(line, STORE)
        warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
        (warning,) = warnings  # once
        assert "another line of states" in warning
        assert "step_10, step_13. They" in warning
    assert names(directory) == [*made, "step_2"]


def test_what_was_just_written_stays_even_if_it_seems_older(directory):
    assert apply(directory, 1, just_written=directory / "step_3") == ["step_1", "step_4"]


def test_the_newest_with_a_dense_part_stays(directory):
    trained = [make(directory, 10 + i, i, Origin(OURS, STORE), "model.pt") for i in range(3)]
    assert apply(directory, 1) == ["step_10", "step_11", "step_3", "step_1", "step_4"]
    assert names(directory) == [trained[-1].name, "step_2"]


def test_what_somebody_reads_stays_for_now(directory, caplog):
    reader = InUse(directory / "step_3" / "manifest.json")
    with caplog.at_level(logging.INFO):
        assert apply(directory, 2) == ["step_1"]
    assert "a read-only store is open over it" in caplog.text
    assert "removed the checkpoint" in caplog.text
    reader.end()
    assert apply(directory, 2) == ["step_3"]


def test_a_damaged_one_is_neither_counted_nor_removed(directory, caplog):
    (directory / "step_3" / "manifest.json").write_text("{")
    assert apply(directory, 2) == ["step_1"]
    assert "step_3 alone" in caplog.text
    assert names(directory) == ["step_2", "step_3", "step_4"]


def test_what_an_interrupted_removal_left_is_in_nobodys_way(directory):
    left = directory / removed_name("step_3")
    left.mkdir()
    mark_temporary(left)
    (left / "manifest.json").write_text("{")
    assert apply(directory, 3) == ["step_3"]
    assert names(directory) == ["step_1", "step_2", "step_4"]


@pytest.mark.parametrize("keep", [0, -1])
def test_none_at_all_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=f"keep must be positive, got {keep}"):
        Retention(keep)


@pytest.mark.parametrize("keep", [1.5, "3", True])
def test_a_number_is_an_int(keep):
    with pytest.raises(TypeError, match="keep must be an int or None"):
        Retention(keep)
