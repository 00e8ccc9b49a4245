"""`damo_torchrec.checkpoints.atomic_directory`: several writers of one directory do each other no harm."""

import os
from pathlib import Path

import pytest

from damo_torchrec import DamoError
from damo_torchrec.checkpoints import layout
from damo_torchrec.checkpoints.atomic_directory import build_directory, clear_unfinished, remove_directory
from damo_torchrec.checkpoints.in_use import InUse
from damo_torchrec.checkpoints.temporary_directory import mark_temporary
from processes import kill_this_process, run_until_killed


def writing(name: str, then=lambda: None):
    def fill(staged: Path) -> None:
        (staged / "file").write_text(name)
        then()

    return fill


def contents(where: Path) -> dict[str, str]:
    return {path.name: (path / "file").read_text() for path in where.iterdir()}


def test_what_somebody_is_at_work_on_is_not_cleared(tmp_path):
    left = tmp_path / layout.removed_name("left")
    left.mkdir()
    mark_temporary(left)
    (left / "contents").mkdir()
    (tmp_path / layout.removed_name("about_to_be")).mkdir()
    build_directory(tmp_path / "a", "checkpoint", writing("one", lambda: clear_unfinished(tmp_path)))
    assert contents(tmp_path) == {"a": "one"}


def test_what_is_nothing_unfinished_is_not_cleared(tmp_path):
    """Names of our own, too, without the marker, or behind a link, in which case they are somebody else's."""
    ours = [layout.staged_name("step_1"), layout.removed_name("step_1")]
    names = [".notes.tmp", ".photos.removed", ".step_1.7.tmp", ".mine", "visible.7.tmp", *ours]
    marked = tmp_path / "marked"
    marked.mkdir()
    mark_temporary(marked)
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("")
    (tmp_path / ".file.0.damo-staged").write_text("")
    (tmp_path / ".link.0.damo-removed").symlink_to(marked)
    os.mkfifo(tmp_path / ".fifo.0.damo-staged")
    before = sorted(tmp_path.rglob("*"))
    clear_unfinished(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_somebody_elses_by_our_names_is_in_nobodys_way(tmp_path):
    theirs = {layout.removed_name("a"), layout.staged_name("a")}
    for name in theirs:
        (tmp_path / name).write_text("")
    build_directory(tmp_path / "a", "checkpoint", writing("one"))
    assert (tmp_path / "a" / "file").read_text() == "one"
    remove_directory(tmp_path / "a", "checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == theirs


def test_a_removal_that_is_interrupted_leaves_what_is_cleared(tmp_path, monkeypatch):
    build_directory(tmp_path / "a", "checkpoint", writing("one"))

    def interrupted(path: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove_directory(tmp_path / "a", "checkpoint")
    (left,) = tmp_path.iterdir()
    assert left.name == layout.removed_name("a")
    clear_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def where(tmp_path):
    """A directory without the sockets of other processes."""
    (tmp_path / "where").mkdir()
    return tmp_path / "where"


def killed_while_it_makes(target: Path) -> None:
    build_directory(target, "checkpoint", writing("half", kill_this_process))


def test_what_a_killed_process_left_goes_when_the_same_is_made_again(where, caplog):
    run_until_killed(killed_while_it_makes, where / "a")
    run_until_killed(killed_while_it_makes, where / "b")
    left_of_a, left_of_b = sorted(where.iterdir())
    theirs = where / ".a.1.0.damo-staged"
    theirs.mkdir()
    (theirs / "thesis").write_text("")
    in_use = where / ".a.1.1.damo-staged"
    in_use.mkdir()
    mark_temporary(in_use)
    somebody = InUse(in_use)
    with caplog.at_level("INFO", logger="damo_torchrec"):
        build_directory(where / "a", "checkpoint", writing("one"))
    somebody.end()
    assert set(where.iterdir()) == {where / "a", left_of_b, theirs, in_use}
    assert f"removed {left_of_a}, which was left unfinished" in caplog.messages


def test_what_was_left_and_cannot_be_removed_is_in_nobodys_way(where, monkeypatch, caplog):
    run_until_killed(killed_while_it_makes, where / "a")
    (left,) = where.iterdir()

    def refused(path: object) -> None:
        raise PermissionError(f"not {path}")

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda path: refused(path) if left in Path(path).parents else None)
        build_directory(where / "a", "checkpoint", writing("one"))
    assert "cannot remove what was left when the making of" in caplog.text
    assert set(where.iterdir()) == {where / "a", left}


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
