"""The picture of online_training.py: AUC per day, and rows per day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from online_training import Figures

LABELS = {
    "fixed": "TorchRec, fixed vocabulary",
    "hashed": "TorchRec, hashed",
    "ours": "damo_torchrec",
    "bounded": "damo_torchrec, bounded",
}
COLOURS = {"fixed": "tab:gray", "hashed": "tab:orange", "ours": "tab:blue", "bounded": "tab:green"}


def unable(file: Path) -> str:
    """Why nothing can be drawn there; empty if it can."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "this needs matplotlib: pip install matplotlib"
    if file.suffix != ".png":
        return "the name must end in .png"
    return "" if file.parent.is_dir() else f"there is no directory {file.parent}"


def draw(days: Sequence[Mapping[str, Figures]], file: Path) -> None:
    """Writes the picture. REQUIRES: `unable` says nothing, and there are two days at least."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    aucs, rows = figure.subplots(1, 2)
    # The first day is predicted by models that have learned nothing.
    lines(aucs, {name: [day[name].auc for day in days[1:]] for name in LABELS}, first=2)
    aucs.set_title("How well the next day is predicted (AUC)")
    lines(rows, {name: [day[name].all_rows / 1000 for day in days] for name in LABELS}, first=1)
    rows.set_title("Rows (thousands), and the most that they took on disk")
    rows.set_ylim(bottom=0)
    aucs.legend(loc="lower left", frameon=False)
    for name in LABELS:
        most = max(day[name].disk_bytes for day in days)
        rows.annotate(
            f"{most / 1e6:.1f} MB",
            (len(days), days[-1][name].all_rows / 1000),
            xytext=(6, {"fixed": -12, "hashed": 6}.get(name, -3)),
            textcoords="offset points",
            color=COLOURS[name],
        )
    figure.savefig(file, dpi=80)


def lines(axes: Axes, values: Mapping[str, Sequence[float]], first: int) -> None:
    """A line for each contestant, from day `first` on."""
    for name, line in values.items():
        days = range(first, first + len(line))
        bold = 2.5 if name in ("ours", "bounded") else 1.5
        axes.plot(days, line, label=LABELS[name], color=COLOURS[name], linewidth=bold)
    axes.set_xlabel("day")
    axes.set_xlim(left=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
