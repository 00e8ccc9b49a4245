"""`damo-torchrec stats`."""

import json

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.cli import main as cli


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


def test_a_watch_shows_each_new_checkpoint_once(trained, tmp_path, capsys, monkeypatch):
    """Beside a training, and until Ctrl-C."""
    with damo.EmbeddingStore(trained, memory_budget="64MiB") as store:
        looks = iter([False, True, False])

        def look(seconds: float) -> None:
            assert seconds == 3
            try:
                checkpoint = next(looks)
            except StopIteration:
                raise KeyboardInterrupt from None
            if checkpoint:
                store.table("t").set([77], torch.ones(1, 8))
                store.checkpoint()

        monkeypatch.setattr("time.sleep", look)
        monkeypatch.setattr("damo_torchrec.cli.main.end_by_interrupt", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            cli.main(["stats", str(trained), "--watch", "3", "--json", "-q"])
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["tables"]["t"]["rows"] for document in documents] == [5, 6]


def test_a_watch_is_for_the_newest(trained_once, call):
    status, _, err = call("stats", trained_once, "--watch", "1", "--checkpoint", "then")
    assert status == 2
    assert "either --watch" in err
