"""`damo-torchrec stats`."""

import numpy as np
import pytest

import damo_torchrec as damo


def test_figures_are_those_of_all_rows(trained_once, document):
    status, found = document("stats", trained_once)
    assert (status, found["step"], sorted(found["tables"])) == (0, 2, ["half", "t"])
    with damo.EmbeddingStore(trained_once, memory_budget="64MiB", read_only=True) as store:
        for name, table in store.tables().items():
            ids, weights = table.to_torch()
            norms = np.linalg.norm(weights.double().numpy(), axis=1)
            updates = table.metadata(ids).updates.double().numpy()
            figures = found["tables"][name]
            assert (figures["rows"], figures["dim"], figures["updates"]) == (len(ids), table.dim, 2)
            for what, numbers in (("norm", norms), ("row_updates", updates)):
                expected = {"min": numbers.min(), "mean": numbers.mean(), "max": numbers.max()}
                assert figures[what] == pytest.approx(expected, rel=1e-12)
            assert figures["zero_rows"] == int((norms == 0).sum())
            assert figures["nonfinite_rows"] == 0
    weights, state, header = {"t": 8 * 4, "half": 4 * 2}, {"t": 8 * 8, "half": 4 * 8}, 8
    assert {name: figures["bytes_of_rows"] for name, figures in found["tables"].items()} == {
        name: found["tables"][name]["rows"] * (weights[name] + state[name] + header) for name in weights
    }


def test_they_are_printed_a_line_for_each_table(trained_once, call):
    status, lines, _ = call("stats", trained_once, "--table", "t")
    assert (status, lines[0]) == (0, f"store {trained_once}, step 2")
    assert lines[1].split()[:3] == ["table", "rows", "bytes"]
    assert lines[2].split()[:2] == ["t", "5"]
    assert len(lines) == 3
