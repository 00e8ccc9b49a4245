"""`damo_torchrec.checkpoints.retention`: the newest checkpoints stay, and those that are damaged are left alone."""

from pathlib import Path

import pytest

from damo_torchrec.checkpoints.listing import checkpoints_at
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.retention import Retention


@pytest.fixture
def directory(tmp_path) -> Path:
    """Checkpoints of steps 3, 1, 4 and 2, made in this order."""
    for sequence, step in enumerate([3, 1, 4, 2]):
        path = tmp_path / f"step_{step}"
        path.mkdir()
        Manifest(seed=0, step=step, sequence=sequence, next_table_number=1, tables={}).write(path)
    return tmp_path


def test_the_newest_stay_whatever_their_steps(directory):
    assert Retention(3).apply(directory) == [directory / "step_3"]
    assert checkpoints_at(directory) == [directory / f"step_{step}" for step in (1, 4, 2)]
    assert Retention(3).apply(directory) == []
    assert Retention(1).apply(directory) == [directory / "step_1", directory / "step_4"]
    assert [path.name for path in directory.iterdir()] == ["step_2"]


def test_without_a_number_all_stay(directory):
    assert Retention().apply(directory) == []
    assert len(checkpoints_at(directory)) == 4


def test_a_damaged_one_is_neither_counted_nor_removed(directory, caplog):
    (directory / "step_3" / "manifest.json").write_text("{")
    assert Retention(2).apply(directory) == [directory / "step_1"]
    assert "step_3 alone" in caplog.text
    assert sorted(path.name for path in directory.iterdir()) == ["step_2", "step_3", "step_4"]


def test_what_an_interrupted_removal_left_is_in_nobodys_way(directory):
    (directory / ".step_3.removed").mkdir()
    (directory / ".step_3.removed" / "manifest.json").write_text("{")
    assert Retention(3).apply(directory) == [directory / "step_3"]
    assert sorted(path.name for path in directory.iterdir()) == ["step_1", "step_2", "step_4"]


@pytest.mark.parametrize("keep", [0, -1])
def test_none_at_all_cannot_be_kept(keep):
    with pytest.raises(ValueError, match=f"keep must be positive, got {keep}"):
        Retention(keep)
