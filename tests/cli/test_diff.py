"""`damo-torchrec diff`."""

import pytest

from support import small_store


def test_rows_that_came_went_and_changed(trained_once, call, document):
    then = trained_once / "checkpoints" / "then"
    status, found = document("diff", then, trained_once, "--ids")
    assert (status, found["tables"].keys()) == (0, {"half", "t"})
    assert found["tables"]["t"]["ids"] == {"added": [0, 9], "gone": [6], "changed": [5]}
    assert found["tables"]["half"]["ids"] == {"added": [3], "gone": [], "changed": [2]}
    assert 0 < found["tables"]["t"]["largest_change"] < 1
    lines = call("diff", then, trained_once, "--ids", "--table", "t")[1]
    assert lines[:4] == ["t 0 added", "t 9 added", "t 6 gone", "t 5 changed"]
    assert lines[5].split()[:4] == ["t", "2", "1", "1"]
    back = document("diff", trained_once, then)[1]["tables"]["t"]
    assert (back["added"], back["gone"], back["changed"]) == (1, 2, 1)
    same = document("diff", then, then)[1]["tables"]["t"]
    assert same == {"added": 0, "gone": 0, "changed": 0, "largest_change": 0.0, "schema": []}


def test_tables_that_were_converted_made_or_dropped(trained, document):
    then = trained / "checkpoints" / "then"
    with small_store(trained) as store:
        store.convert_table("t", dim=2)
        store.convert_table("half", optimizer="SGD")
    tables = document("diff", then, trained)[1]["tables"]
    assert (tables["t"]["changed"], tables["t"]["schema"]) == (None, ["dim was 8, is 2"])
    assert tables["half"]["changed"] == 1
    assert [text.split()[0] for text in tables["half"]["schema"]] == ["optimizer"]
    with small_store(trained) as store:
        store.rename_table("t", "u")
    tables = document("diff", then, trained)[1]["tables"]
    assert (tables["t"]["gone"], tables["u"]["added"], tables["u"]["changed"]) == (4, 5, 0)


@pytest.mark.parametrize("arguments", [("{store}", "{store}", "--table", "u"), ("{store}", "nowhere")])
def test_wrong_usage_is_told(trained_once, call, arguments):
    status, lines, err = call("diff", *(argument.format(store=trained_once) for argument in arguments))
    assert (status, lines) == (2, [])
    assert "'u'" in err or "nowhere is not a directory" in err
