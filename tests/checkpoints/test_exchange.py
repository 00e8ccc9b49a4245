"""Two directories that trade names."""

import ctypes
import errno
import os

import pytest

from damo_torchrec.checkpoints import exchange as module
from damo_torchrec.checkpoints.exchange import exchange


@pytest.fixture
def two(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    return tmp_path / "one", tmp_path / "other"


def contents(*directories):
    return [os.listdir(directory) for directory in directories]


def test_they_trade_names(two):
    exchange(*two)
    assert contents(*two) == [["other"], ["one"]]


@pytest.mark.parametrize("missing", ["function", "in this file system"])
def test_where_the_system_cannot_do_it_at_once_it_takes_three_steps(two, monkeypatch, missing):
    class Library:
        if missing != "function":

            @staticmethod
            def renameat2(*_):
                ctypes.set_errno(errno.EINVAL)
                return -1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: Library)
    exchange(*two)
    assert contents(*two) == [["other"], ["one"]]
    assert sorted(path.name for path in two[0].parent.iterdir()) == ["one", "other"]


def test_a_crash_between_the_steps_leaves_what_was_there_beside_its_place(two, monkeypatch):
    monkeypatch.setattr(module, "_exchange_at_once", lambda *_: False)
    rename, calls = os.rename, []

    def crashing(source, target):
        calls.append(target)
        if len(calls) > 1:
            raise KeyboardInterrupt  # which is as good as a crash: nothing is undone
        rename(source, target)

    monkeypatch.setattr(os, "rename", crashing)
    with pytest.raises(KeyboardInterrupt):
        exchange(*two)
    assert contents(two[1].with_name("other.exchanged")) == [["other"]]


def test_what_is_not_there_is_an_error_and_changes_nothing(two):
    with pytest.raises(FileNotFoundError):
        exchange(two[0].with_name("none"), two[1])
    assert contents(*two) == [["one"], ["other"]]
