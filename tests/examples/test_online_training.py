"""The comparison of online_training.py runs, says the same twice, and keeps to its limits."""

import builtins
import itertools
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import online_plot
import online_training
from online_stream import StreamOptions, stream

PROGRAM = Path(__file__).parents[2] / "examples" / "online_training.py"
SMALL = StreamOptions(users=300, items=100, impressions=1500, renewal=0.2)


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def figures(seed: int, days: int) -> list[dict[str, tuple[float, dict[str, int]]]]:
    """Without the disk's, which depend on when RocksDB merges files."""
    found = online_training.compare(SMALL, days, seed)
    return [{name: (f.auc, dict(f.rows)) for name, f in day.items()} for day in found]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the program has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_quick_run_prints_a_table_and_draws(tmp_path):
    done = program("--quick", "--plot", "picture.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    groups, names, *lines, drawn = done.stdout.splitlines()
    assert [group.strip() for group in groups.split("|")] == ["", "AUC", "rows", "MB of rows", "MB on disk"]
    assert names.replace("|", "").split() == ["day", *["fixed", "hashed", "ours", "bounded"] * 4]
    table = np.array([[float(x) for x in line.replace("|", "").replace(",", "").split()] for line in lines])
    assert table[:, 0].tolist() == [1, 2, 3, 4, 5]
    aucs, rows = table[:, 1:5], table[:, 5:9]
    assert (aucs[-1, 2:] > aucs[-1, 1]).all()  # no id shares its row with another one's
    assert (np.diff(rows[:, 2]) > 0).all()  # one for every id ever seen
    assert (rows[:, 3] <= rows[:, 1]).all()  # of which there are as many as `bounded` may have
    assert drawn == "drawn: picture.png"
    picture = (tmp_path / "picture.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert picture.startswith(b"\x89PNG")
    assert width > 2 * height
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.slow
def test_figures_go_by_the_seed_and_rows_stay_within_their_limits():
    days = figures(seed=0, days=6)
    assert figures(seed=0, days=2) == days[:2]
    assert figures(seed=1, days=2) != days[:2]
    limits = online_training.row_limits(SMALL)
    for day in days:
        _, rows = day["bounded"]
        assert all(0 < rows[name] <= limits[name] for name in limits)
        assert day["hashed"][1] == limits
    assert sum(day["ours"][1].values()) > 1.5 * sum(limits.values())  # without limits it would have been more


def test_users_and_items_come_and_go():
    options = replace(SMALL, impressions=20_000)
    days = list(stream(options, days=12, seed=0))
    users = [set(day.users.tolist()) for day in days]
    for before, after in itertools.pairwise(users):
        assert 0.1 < len(after - before) / len(after) < 0.3
    assert len(users[0] & users[-1]) < 0.3 * options.users  # 0.8^11 is 0.09
    again = list(stream(options, days=3, seed=0))
    assert all((one.clicks == other.clicks).all() for one, other in zip(again, days, strict=False))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--days", "1"], "at least 2"),
        (["--seed", "-1"], "must not be negative"),
        (["--plot", "picture.jpeg"], "must end in .png"),
        (["--plot", "nowhere/picture.png"], "there is no directory nowhere"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(arguments, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["online_training.py", *arguments])
    with pytest.raises(SystemExit) as end:
        online_training.main()
    assert end.value.code == 2
    assert error in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install matplotlib" in online_plot.unable(tmp_path / "picture.png")
