"""The benchmark of reading Parquet runs as a whole. No figure is looked at."""

import json
import sys

import pytest

pytest.importorskip("xxhash")
import loading


def test_it_runs(tmp_path, monkeypatch, capsys):
    file = tmp_path / "loading.json"
    monkeypatch.setattr(loading, "FEATURES", 2)
    monkeypatch.setattr(sys, "argv", ["loading.py", "--rows", "300", "--rounds", "1", "--json", str(file)])
    loading.main()
    forms = json.loads(file.read_text())["forms"]
    assert len(forms) == 4
    assert all(rate["median"] > 0 for rates in forms.values() for rate in rates.values())
    assert "strings, shuffled" in capsys.readouterr().out
