"""`damo-torchrec`: what all of its commands share."""

from pathlib import Path

import pytest

from damo_torchrec.cli import main as cli


def test_wrong_usage_has_a_status_of_its_own(sample, call, tmp_path):
    for arguments in [
        ("info", tmp_path),
        ("verify", tmp_path / "absent"),
        ("repair", tmp_path, tmp_path / "out"),
        ("repair", sample.store, tmp_path),
    ]:
        status, lines, err = call(*arguments)
        assert (status, lines) == (2, [])
        assert err.startswith(f"damo-torchrec: {tmp_path}")
    for arguments in [[], ["verify"], ["mend", "x"]]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 2


def test_the_entry_point_is_the_tool():
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert '[project.scripts]\ndamo-torchrec = "damo_torchrec.cli.main:main"\n' in project.read_text()
