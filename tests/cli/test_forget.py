"""``damo-torchrec forget``."""

from pathlib import Path

import pytest

import damo_torchrec as damo
from forgotten import PERSON, Traces, collection, days, train


@pytest.fixture
def traces():
    return Traces()


@pytest.fixture
def closed(tmp_path, traces) -> Path:
    days(tmp_path / "store", traces).close()
    return tmp_path / "store"


def test_it_forgets_in_a_closed_store(closed, traces, call):
    assert traces.files(closed)
    status, lines, err = call("forget", closed, "t", *PERSON)
    assert (status, err) == (0, "")
    assert traces.files(closed) == []
    assert any("checkpoint" in line and "rewritten" in line for line in lines)
    assert call("verify", closed)[0] == 0
    with damo.EmbeddingStore(closed, memory_budget="64MiB") as store:
        assert not store.table("t").contains(PERSON).any()
        train(collection(store), PERSON)


def test_ids_may_be_in_a_file(closed, traces, tmp_path, call):
    (tmp_path / "ids").write_text("405 -3\n-9223372036854775808\n")
    assert call("forget", closed, "t", "--ids-file", tmp_path / "ids")[0] == 0
    assert traces.files(closed) == []


def test_a_dry_run_changes_nothing(closed, traces, call):
    before = {file: file.read_bytes() for file in closed.rglob("*") if file.is_file() and file.name != "LOCK"}
    status, lines, _ = call("forget", closed, "t", *PERSON, "--dry-run")
    assert status == 0
    assert any("would be rewritten" in line for line in lines)
    assert {file: file.read_bytes() for file in closed.rglob("*") if file.is_file() and file.name != "LOCK"} == before


def test_what_is_left_is_said_and_is_the_exit_status(closed, call):
    with damo.EmbeddingStore(closed, memory_budget="64MiB", read_only=True):
        status, lines, _ = call("forget", closed, "t", *PERSON)
    assert status == 1
    assert any(line.startswith("left: checkpoint") for line in lines)
    assert call("forget", closed, "t", *PERSON)[0] == 0


def test_live_rows_of_a_crash_are_removed(closed, traces, call):
    (closed / "live").mkdir()
    (closed / "live" / "000001.sst").write_bytes(b"".join(traces.pieces))
    status, lines, _ = call("forget", closed, "t", *PERSON)
    assert status == 0
    assert traces.files(closed) == []
    assert any("rows of a crash" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no table", 1], "no table 'no table'"),
        (["t"], "nothing to forget"),
        (["t", 1, "--deltas", "nowhere"], "does not exist"),
    ],
)
def test_wrong_usage_is_told(closed, call, arguments, message):
    status, _, err = call("forget", closed, *arguments)
    assert status == 2
    assert message in err


@pytest.mark.parametrize("text", ["x", "9223372036854775808", "1.5"])
def test_what_is_no_id_is_refused(closed, call, text, capsys):
    with pytest.raises(SystemExit) as ended:
        call("forget", closed, "t", text)
    assert ended.value.code == 2
    assert "no id" in capsys.readouterr().err


def test_an_open_store_is_left_to_who_has_it_open(tmp_path, traces, call):
    with days(tmp_path / "store", traces):
        status, _, err = call("forget", tmp_path / "store", "t", *PERSON)
    assert status == 2
    assert "store.forget()" in err
