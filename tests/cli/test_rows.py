"""`damo-torchrec head`, `get` and `top`."""

import numpy as np
import pytest

import damo_torchrec as damo
from support import small_store


@pytest.fixture(scope="module")
def known(trained_once):
    """What the store's tables say of their rows by id, by table."""
    with damo.EmbeddingStore(trained_once, memory_budget="64MiB", read_only=True) as store:
        found = {}
        for name, table in store.tables().items():
            ids, weights = table.to_torch()
            described = table.metadata(ids)
            found[name] = {
                number: {
                    "id": number,
                    "updates": described.updates[i].item(),
                    "last_step": described.last_step[i].item(),
                    "weights": weights[i].tolist(),
                    "state": {part: values[i].tolist() for part, values in table.get_state(ids).items()},
                }
                for i, number in enumerate(ids.tolist())
            }
        return found


def test_head_has_the_first_rows(trained_once, document, known):
    status, found = document("head", trained_once, "t", "-n", "3")
    assert (status, found["dim"], found["table"]) == (0, 8, "t")
    assert found["rows"] == [known["t"][number] for number in sorted(known["t"])[:3]]
    assert len(document("head", trained_once, "half")[1]["rows"]) == 4


def test_get_has_rows_of_any_id(trained_once, document, known, tmp_path):
    ids = [-(2**63), 2, 77, 2**63 - 1]
    status, found = document("get", trained_once, "half", *ids)
    assert (status, found["absent"]) == (0, [77, 2**63 - 1])
    assert found["rows"] == [known["half"][-(2**63)], known["half"][2]]
    (tmp_path / "ids").write_text("5\n-7")
    assert [row["id"] for row in document("get", trained_once, "t", "--ids-file", tmp_path / "ids")[1]["rows"]] == [
        5,
        -7,
    ]


def test_rows_are_printed_below_each_other(trained_once, call):
    status, lines, err = call("get", trained_once, "t", 0, 77)
    assert (status, err) == (0, "")
    assert lines == [
        "id  updates  last step  norm  weights",
        "0   0        2          0     0 0 0 0 0 0 ... (8)",
        "77 has no row",
    ]


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("by", ["norm", "updates"])
def test_top_has_what_sorting_all_rows_has(trained_once, document, known, by, least):
    def key(row: dict) -> tuple[float, int]:
        value = row["updates"] if by == "updates" else float(np.linalg.norm(np.float64(row["weights"])))
        return (value if least else -value, row["id"])

    for n in (1, 3, 99):
        options = ["-n", n, "--by", by, *(["--least"] if least else [])]
        expected = sorted(known["t"].values(), key=key)[:n]
        assert document("top", trained_once, "t", *options)[1]["rows"] == expected


def test_an_earlier_checkpoint_has_its_rows(trained_once, document):
    for path, option in [(trained_once, ["--checkpoint", "then"]), (trained_once / "checkpoints" / "then", [])]:
        found = document("get", path, "t", 6, 9, *option)[1]
        assert ([row["id"] for row in found["rows"]], found["absent"]) == ([6], [9])


def test_an_empty_table_has_no_rows(tmp_path, document, trained):
    with small_store(trained) as store:
        store.table("t").delete(store.table("t").to_torch()[0])
    for command in ("head", "top"):
        assert document(command, trained, "t")[1]["rows"] == []
    assert document("stats", trained)[1]["tables"]["t"]["norm"] == {"min": None, "mean": None, "max": None}


def test_beside_a_store_that_is_open_the_newest_checkpoint_is_read_and_said(trained, call):
    with small_store(trained) as store:
        store.table("t").delete([0])
        status, lines, err = call("get", trained, "t", 0)
        assert (status, len(lines)) == (0, 2)
        assert err.startswith(f"damo-torchrec: the store {trained} is open ")
        assert "newest checkpoint, of step 2" in err
        assert call("get", trained, "t", 0, "--quiet") == (0, lines, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("head", "u"), "has no table 'u'; its tables are ['half', 't']"),
        (("top", "t", "--checkpoint", "never"), "has no checkpoint 'never'"),
        (("get", "t"), "nothing to get"),
        (("get", "t", "1", "--memory-budget", "1KiB"), "memory_budget must be at least"),
    ],
)
def test_wrong_usage_is_told(trained_once, call, arguments, message):
    command, *others = arguments
    status, lines, err = call(command, trained_once, *others)
    assert (status, lines) == (2, [])
    assert message in err


@pytest.mark.parametrize("n", ["0", "-1", "x"])
def test_what_is_no_number_of_rows_is_refused(trained_once, call, n):
    with pytest.raises(SystemExit) as left:
        call("head", trained_once, "t", "-n", n)
    assert left.value.code == 2
