"""`damo-torchrec prune` and `delete`."""

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.checkpoint_line import CheckpointLine


def ids(store, table="t"):
    with damo.EmbeddingStore(store, memory_budget="64MiB", read_only=True) as opened:
        return opened.table(table).to_torch()[0].tolist()


def names(store):
    return sorted(path.name for path in (store / "checkpoints").iterdir())


def test_prune_keeps_the_newest_and_what_is_not_the_stores_own(trained, call, document):
    assert names(trained) == ["step_0", "step_2", "then"]
    found = document("prune", trained, "--keep", 1, "--dry-run")[1]
    assert found["removed"] == [str(trained / "checkpoints" / "step_0")]
    assert names(trained) == ["step_0", "step_2", "then"]
    status, lines, err = call("prune", trained, "--keep", 1, "--yes")
    assert (status, err) == (0, "")
    assert lines == [f"{trained / 'checkpoints' / 'step_0'}: removed", "1 checkpoints were removed"]
    assert names(trained) == ["step_2", "then"]
    assert call("prune", trained, "--keep", 1) == (0, ["0 checkpoints were removed"], "")


@pytest.mark.parametrize(
    ("which", "left"),
    [
        (["5", "77"], [-7, 0, 9, 2**62]),
        (["-7", str(2**62)], [0, 5, 9]),
        (["--norm-below", "1e-9"], [-7, 5, 9, 2**62]),
        (["--last-step-below", "2"], [0, 5, 9]),
        (["--updates-below", "1"], [-7, 5, 9, 2**62]),
        (["--last-step-below", "3", "--updates-below", "2", "--norm-below", "1e9"], [5]),
        (["--norm-below", "1e-30", "--last-step-below", "2"], [-7, 0, 5, 9, 2**62]),
    ],
)
def test_rows_go_by_ids_or_rules(trained, document, which, left):
    n = len(ids(trained)) - len(left)
    would = document("delete", trained, "t", *which, "--dry-run")[1]
    assert (would["rows"], would["deleted"]) == (5, n)
    assert document("delete", trained, "t", *which, "--yes")[1]["deleted"] == n
    assert ids(trained) == left
    checkpoints = CheckpointLine.of_store(trained).checkpoints()
    assert len(checkpoints) == (4 if n else 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t"], "nothing to delete"),
        (["t", "5", "--norm-below", "1"], "give ids or rules, not both"),
        (["u", "5"], "has no table 'u'"),
    ],
)
def test_wrong_usage_is_told(trained, call, arguments, message):
    status, lines, err = call("delete", trained, *arguments, "--yes")
    assert (status, lines) == (2, [])
    assert message in err


@pytest.mark.parametrize("norm", ["0", "-1", "nan", "inf", "x"])
def test_what_is_no_norm_is_refused(trained_once, call, norm):
    with pytest.raises(SystemExit) as left:
        call("delete", trained_once, "t", f"--norm-below={norm}", "--yes")
    assert left.value.code == 2


def test_a_store_that_was_not_closed_is_not_changed(trained, call):
    (trained / "live").mkdir()
    (trained / "live" / "CURRENT").touch()
    status, lines, err = call("delete", trained, "t", "5", "--yes")
    assert (status, lines) == (2, [])
    assert "was not closed" in err
    assert (trained / "live" / "CURRENT").exists()
