"""`damo_torchrec.checkpoints.atomic_directory`: several writers of one directory do each other no harm."""

from pathlib import Path

import pytest

from damo_torchrec import DamoError
from damo_torchrec.checkpoints.atomic_directory import build_directory, clear_unfinished


def writing(name: str, then=lambda: None):
    def fill(staged: Path) -> None:
        (staged / "file").write_text(name)
        then()

    return fill


def contents(where: Path) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in where.iterdir()}


def test_what_somebody_is_at_work_on_is_not_cleared(tmp_path):
    (tmp_path / ".left.1.tmp").mkdir()
    build_directory(tmp_path / "a", "checkpoint", writing("one", lambda: clear_unfinished(tmp_path)))
    assert contents(tmp_path) == {"a": "one"}


def test_what_is_nothing_unfinished_is_not_cleared(tmp_path):
    names = [".cache.tmp", ".mine", ".file.7.tmp", "visible.7.tmp"]
    for name in names:
        (tmp_path / name).write_text("") if "file" in name else (tmp_path / name).mkdir()
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_two_that_make_the_same_one_at_once(tmp_path):
    def second() -> None:
        assert build_directory(tmp_path / "a", "checkpoint", writing("second")) == tmp_path / "a"

    with pytest.raises(DamoError, match="cannot write the checkpoint"):
        build_directory(tmp_path / "a", "checkpoint", writing("first", second))
    assert contents(tmp_path) == {"a": "second"}


def test_a_name_that_was_taken_meanwhile_is_given_up_for_another(tmp_path):
    others = iter([tmp_path / "a", tmp_path / "b"])

    def second() -> None:
        build_directory(tmp_path / "a", "checkpoint", writing("second"))

    made = build_directory(tmp_path / "a", "checkpoint", writing("first", second), lambda: next(others))
    assert made == tmp_path / "b"
    assert contents(tmp_path) == {"a": "second", "b": "first"}
