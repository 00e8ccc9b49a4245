#!/usr/bin/env python3
"""Draws the README's pictures, of the table in docs/performance.md and of what memory_limit.py wrote."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.budget import MIB
from common.program import RefusedError, run
from plots import LIMIT_COLOUR, OTHER_COLOUR, OUR_COLOUR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SHOWN = ("250,000, 64, 1", "250,000, 64, 1, tuned memory")  # rows, dim and ids per feature
SIZE, DOTS = (8, 3.6), 130


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    for name, figure in (
        ("speed", speed((ROOT / "docs" / "performance.md").read_text())),
        ("memory", memory(json.loads((IMAGES / "memory.json").read_text()))),
    ):
        figure.savefig(IMAGES / f"{name}.png", dpi=DOTS)
        print(IMAGES / f"{name}.png")


def steps(page: str) -> list[tuple[str, str, float, float, str]]:
    """The table of one step: case, peer with its rule, our ms/step, the peer's, and the median of their ratios."""
    found: list[tuple[str, str, float, float, str]] = []
    case, ours = "", ("", 0.0)
    for line in page.split("\n### Figures\n")[-1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 4 or (peer := re.fullmatch(r"(.+) ([\d.]+)", cells[2])) is None:
            continue
        if own := re.fullmatch(r"(.+) ([\d.]+)", cells[1]):
            case, ours = cells[0], (own[1], float(own[2]))
        found.append((f"{case}: {ours[0]}", peer[1], ours[1], float(peer[2]), cells[3].split()[0]))
    if not found:
        raise RefusedError("docs/performance.md has no table of one step")
    return found


def speed(page: str) -> "Figure":
    """Milliseconds of a step, ours beside each peer."""
    shown = [step for step in steps(page) if step[0].split(":")[0] in SHOWN]
    figure, axes = _axes()
    places: list[float] = []
    labels: list[str] = []
    last, place = "", 0.0
    for case, peer, ours, theirs, ratio in shown:
        if case != last:
            place += 0.5 if last else 0
            sizes, rule = case.split(": ")
            tuned = ",\ntuned memory" if sizes.endswith("tuned memory") else ""
            axes.barh(place, ours, color=OUR_COLOUR)
            axes.text(ours, place, f" {ours:.1f}", va="center")
            places.append(place)
            labels.append(f"damo_torchrec, {rule}{tuned}")
            last, place = case, place + 1
        axes.barh(place, theirs, color=OTHER_COLOUR)
        axes.text(theirs, place, f" {theirs:.1f}, {ratio} ×", va="center")
        places.append(place)
        labels.append(peer)
        place += 1
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set(xlabel="ms of a step: 26 tables of 250,000 rows of 64, 4,096 samples, all rows in memory")
    axes.margins(x=0.12)
    return figure


def memory(report: dict[str, Any]) -> "Figure":
    """Memory over rows, of each contestant, up to where it was killed."""
    figure, axes = _axes()
    for contestant in report["contestants"]:
        colour = OUR_COLOUR if contestant["name"] == "damo_torchrec" else OTHER_COLOUR
        rows, taken = zip(*contestant["points"], strict=True)
        millions = [number / 1e6 for number in rows]
        mib = [number / MIB for number in taken]
        axes.plot(millions, mib, color=colour, linewidth=2)
        if contestant["killed"] is not None:
            axes.plot(millions[-1], mib[-1], marker="x", markersize=12, markeredgewidth=3, color=LIMIT_COLOUR)
            axes.annotate(
                f"{contestant['name']}: killed at {millions[-1]:.1f} million rows",
                (millions[-1], mib[-1]),
                xytext=(12, -14),
                textcoords="offset points",
            )
        else:
            text = f"{contestant['name']}, budget {report['options']['budget']} MiB: goes on"
            axes.text(millions[-1], max(mib) + 30, text, ha="right")
    limit = report["options"]["limit"]
    axes.axhline(limit, color=LIMIT_COLOUR, linestyle="--")
    axes.text(report["options"]["rows"] / 1e6, limit + 20, f"limit {limit:,} MiB", color=LIMIT_COLOUR, ha="right")
    axes.set(
        xlabel=f"million rows of {report['options']['dim']} weights", ylabel="MiB of the process", ylim=(0, limit * 1.2)
    )
    return figure


def _axes() -> tuple["Figure", Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


if __name__ == "__main__":
    sys.exit(run(main))
