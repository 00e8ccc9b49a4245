"""``damo-torchrec bench``: what is said of a step, and what is refused before it takes long."""

import pytest

SMALL = ("--batch-size", "64", "--seconds", "0.05")


def test_what_does_not_fit_is_read(document, tmp_path, capsys):
    rows, dim = 80_000, 512  # 170 MB of weights
    status, found = document("bench", tmp_path, "--rows", rows, "--dim", dim, "--budget", "64MiB", "-q", *SMALL)
    assert status == 0
    fits, beyond = found["results"]
    assert (found["rows"], found["tables"], beyond["memory_budget"]) == (rows, 8, 64 << 20)
    assert fits["memory_budget"] > found["bytes_of_rows"] > rows * dim * 4
    assert fits["rows_read_in_step"] == 0 < beyond["rows_read_in_step"]
    for result in (fits, beyond):
        assert result["steps"] >= 3
        assert 8 < result["ids_in_step"] <= 8 * 64
        assert 0 < result["step_seconds"] <= result["step_seconds_p99"]
    assert list(tmp_path.iterdir()) == []


def test_text_has_a_line_for_each_budget(call, tmp_path):
    status, lines, err = call("bench", tmp_path, "--rows", "800", "--budget", "65MiB", *SMALL)
    assert status == 0
    assert "8 tables of 100 rows of 64" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:]] == ["budget", "128.3 MiB", "65.0 MiB"]
    assert "800 rows are made" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "1MiB"], "memory_budget must be at least"),
        (["--budget", "much"], "much"),
        (["/nowhere"], "/nowhere is no directory"),
    ],
)
def test_what_cannot_be_is_refused_at_once(call, words, message):
    status, lines, err = call("bench", *words)
    assert (status, lines) == (2, [])
    assert message in err
