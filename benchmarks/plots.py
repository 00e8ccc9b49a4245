#!/usr/bin/env python3
"""Draws what the benchmarks wrote with --json: NAME.png beside each NAME.json of a directory."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from common.budget import MIB
from common.entries import OURS, Entry
from common.measure import Spread
from common.program import RefusedError, run
from common.workload import Workload
from parts.cache_policy.case import HINDSIGHT, Case
from parts.dlrm.race import DENSE, Racer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]
T = TypeVar("T")

OUR_COLOUR, OTHER_COLOUR, LIMIT_COLOUR = "tab:blue", "tab:gray", "tab:red"
WIDTH, BAR_HEIGHT, FRAME_HEIGHT = 10, 0.45, 1.4  # inches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="RESULTS_DIR", help="that holds the JSON files")
    directory: Path = parser.parse_args().directory
    files = sorted(directory.glob("*.json"))
    if not files:
        raise RefusedError(f"there are no JSON files in {directory}")
    for file in files:
        image = file.with_suffix(".png")
        draw(file).savefig(image, dpi=120)
        print(image)


def draw(file: Path) -> "Figure":
    """The plot of a benchmark's report.

    Raises:
        RefusedError: it is no report, or that of an unknown benchmark.
    """
    try:
        report = json.loads(file.read_text())
        benchmark = report["benchmark"]
    except (ValueError, KeyError, TypeError):
        raise RefusedError(f"{file} is not the report of a benchmark") from None
    if benchmark not in PLOTS:
        raise RefusedError(f"{file} is of an unknown benchmark, {benchmark!r}; known are {', '.join(PLOTS)}")
    try:
        return PLOTS[benchmark](report)
    except KeyError as error:
        raise RefusedError(f"{file} lacks {error}, which a report of {benchmark} has") from error


# ---------------------------------------------------------------- one for each benchmark


def embedding_step(report: Report) -> "Figure":
    """Time of a step, by contestant."""
    races = report["races"]
    figure, panels = stacked([len(race["contestants"]) for race in races])
    for race, axes in zip(races, panels, strict=True):
        entries = [made_from(Entry, contestant) for contestant in race["contestants"]]
        bars(
            axes,
            [f"{entry.name}\n{entry.setting}" for entry in entries],
            [contestant["step_seconds"] for contestant in race["contestants"]],
            [entry.library == OURS for entry in entries],
            factor=1000,
        )
        axes.set(title=Workload(**race["workload"]), xlabel="ms/step")
    return figure


def dlrm(report: Report) -> "Figure":
    """Throughput, by contestant, beside that of the dense part alone and the roofs."""
    races = report["races"]
    figure, panels = stacked([len(race["contestants"]) for race in races])
    for race, axes in zip(races, panels, strict=True):
        workload, contestants = Workload(**race["workload"]), race["contestants"]
        racers = [made_from(Racer, contestant) for contestant in contestants]
        speeds = [contestant["samples_per_second"] for contestant in contestants]
        labels = [f"{racer.name}\n{racer.setting}" for racer in racers]
        bars(axes, labels, speeds, [racer.library == OURS for racer in racers])
        dense = next(speed["median"] for racer, speed in zip(racers, speeds, strict=True) if racer.library == DENSE)
        axes.axvline(dense, color=LIMIT_COLOUR, linestyle="--", label=DENSE)
        roofs = [
            (workload.batch_size / contestant["of_roof"]["limit"], place)
            for place, contestant in enumerate(contestants)
            if contestant["of_roof"] is not None
        ]
        if roofs:
            axes.scatter(*zip(*roofs, strict=True), marker="|", s=400, color=LIMIT_COLOUR, label="roof", zorder=3)
        axes.set(title=f"{workload}\nmemory for {race['percent']:g} % of the rows", xlabel="samples/s")
    legend_below(figure, panels[-1])
    return figure


def cold(report: Report) -> "Figure":
    """Rates of reading rows that are not in memory, and of writing back, beside those of RocksDB and the disk."""
    panels_of: list[tuple[str, list[str], list[Report]]] = []
    for part, what in (("page_cache", "page cache"), ("direct_io", "direct I/O")):
        if part in report:
            readers = report[part]["readers"]
            labels = [f"{reader['name']}\n{reader['setting']}" for reader in readers]
            panels_of.append((f"reading, {what}", labels, [reader["rows_per_second"] for reader in readers]))
    if "write_back" in report:
        raw = report["write_back"]["raw"]["rows_per_second"]
        spreads = [report["write_back"]["rows_per_second"], {"median": raw, "p10": raw, "p90": raw}]
        panels_of.append(("write-back", [f"{OURS}\nwhile it trains", "RocksDB alone"], spreads))
    figure, panels = stacked([len(labels) for _, labels, _ in panels_of])
    for (title, labels, spreads), axes in zip(panels_of, panels, strict=True):
        bars(axes, labels, spreads, [label.startswith(OURS) for label in labels])
        axes.set(title=title, xlabel="rows/s")
    return figure


def scale(report: Report) -> "Figure":
    """Time of a step, and memory, over the number of rows."""
    sizes = report["sizes"]
    case = sizes[0]["case"]
    rows = [size["case"]["rows"] for size in sizes]
    figure, (time, memory) = stacked([6, 6])
    steps = [size["step_seconds"] for size in sizes]
    medians = [1000 * step["median"] for step in steps]
    time.errorbar(rows, medians, yerr=distances(steps, 1000), marker="o", capsize=4, color=OUR_COLOUR)
    time.set(ylabel="ms/step", title=f"at a hit rate of {sizes[0]['hit_rate']:.1%}: median, p10 and p90")
    for phase in sizes[0]["growth_bytes"]:
        memory.plot(rows, [size["growth_bytes"][phase] / MIB for size in sizes], marker="o", label=f"process, {phase}")
    memory.axhline(case["memory_budget"] / MIB, color="black", linestyle="--", label="budget")
    memory.axhline(sizes[0]["allowed_growth_bytes"] / MIB, color=LIMIT_COLOUR, linestyle="--", label="target")
    memory.set(ylabel="MiB", xlabel="rows", title="memory that the process has more than before it opened the store")
    for axes in (time, memory):
        axes.set(xscale="log", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle(f"dim {case['dim']}, batch {case['batch_size']:,}, {case['features']} features")
    legend_below(figure, memory)
    return figure


def cache_policy(report: Report) -> "Figure":
    """Share of ids whose rows are not in memory, by policy."""
    misses, best = report["misses"], report["misses"][HINDSIGHT]
    figure, (axes,) = stacked([len(misses)])
    shares = [100 * n / report["ids"] for n in misses.values()]
    spreads = [{"median": each, "p10": each, "p90": each} for each in shares]
    bars(axes, [f"{name}\n{n / best:.3f} ×" for name, n in misses.items()], spreads, [name == OURS for name in misses])
    target = report["target"]
    axes.axvline(
        target * 100 * best / report["ids"], color=LIMIT_COLOUR, linestyle="--", label=f"target: {target} × {HINDSIGHT}"
    )
    axes.set(xlabel="% of ids not in memory")
    figure.suptitle(str(Case(**report["case"])), fontsize="medium")
    legend_below(figure, axes)
    return figure


def checkpoint(report: Report) -> "Figure":
    """By how much steps exceed their median, summed over a checkpoint, by who writes it."""
    figure, (axes,) = stacked([2])
    spreads = []
    for background in (True, False):
        excess = [stall["excess"] for stall in report["stalls"] if stall["background"] is background]
        spreads.append(asdict(Spread.of(excess)))
    bars(axes, ["in the background", "by the caller"], spreads, [True, True])
    axes.set(
        title=f"a checkpoint of {report['dirty_bytes'] / MIB:,.0f} MiB of changed rows", xlabel="s above the median"
    )
    return figure


def serving(report: Report) -> "Figure":
    """Time of a lookup in those of a plain Gather, and of whole models, over the batch."""
    kinds = sorted({(lookup["ids_per_bag"], lookup["requests"] > 1) for lookup in report["lookups"]})
    figure, (*lookups, models) = stacked([6] * (len(kinds) + 1))
    for (ids_per_bag, distinct), axes in zip(kinds, lookups, strict=True):
        shown = [f for f in report["lookups"] if (f["ids_per_bag"], f["requests"] > 1) == (ids_per_bag, distinct)]
        lines(axes, shown, over="batch", value="ratio")
        which = "of which each asks for rows of its own" if distinct else "the same each time"
        axes.set(ylabel="times a Gather", title=f"ids in a bag: {ids_per_bag}; requests, {which}")
    lines(models, report["models"], over="batch", value="p50", factor=1000)
    models.set(ylabel="ms, median", xlabel="samples of a request", title="whole models")
    return figure


def serving_load(report: Report) -> "Figure":
    """How soon the server answers, alone, beside clients that stall and with new deltas."""
    loads = report["load"]
    figure, (axes,) = stacked([len(loads)])
    labels = [
        f"{load['stalled']:,.0f} stalled, {load['deltas']:,.0f} deltas meanwhile\n{load['per_second']:,.0f} requests/s"
        for load in loads
    ]
    spreads = [{"median": load["p50"], "p10": load["p50"], "p90": load["p99"]} for load in loads]
    bars(axes, labels, spreads, [True] * len(loads), factor=1000)
    axes.set(title="latency of the server under load", xlabel="ms: median, and up to p99")
    return figure


def memory_limit(report: Report) -> "Figure":
    """Memory over rows, by contestant, up to where it was killed."""
    figure, (axes,) = stacked([8])
    for contestant in report["contestants"]:
        points = [(rows, taken / MIB) for rows, taken in contestant["points"]]
        end = "" if contestant["killed"] is None else f", killed at {contestant['killed']:,} rows"
        axes.plot(*zip(*points, strict=True), label=f"{contestant['name']}{end}")
    axes.axhline(report["options"]["limit"], color=LIMIT_COLOUR, linestyle="--", label="limit")
    axes.set(xlabel="rows", ylabel="MiB", ylim=0)
    axes.legend()
    return figure


PLOTS: dict[str, Callable[[Report], "Figure"]] = {
    plot.__name__: plot
    for plot in (embedding_step, dlrm, cold, scale, cache_policy, checkpoint, serving, serving_load, memory_limit)
}

# ---------------------------------------------------------------- what they share


def stacked(bars: Sequence[int]) -> tuple["Figure", list["Axes"]]:
    """Panels one below the other, each with room for so many bars."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise RefusedError("plots need matplotlib: pip install 'damo-torchrec[bench]'") from None
    heights = [FRAME_HEIGHT + BAR_HEIGHT * count for count in bars]
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    return figure, list(figure.subplots(len(bars), squeeze=False, height_ratios=heights).flat)


def bars(
    axes: "Axes", labels: Sequence[str], spreads: Sequence[Report], ours: Sequence[bool], factor: float = 1
) -> None:
    """A bar for each median, from the top, with lines from p10 to p90."""
    axes.barh(
        range(len(labels)),
        [factor * spread["median"] for spread in spreads],
        xerr=distances(spreads, factor),
        tick_label=labels,
        color=[OUR_COLOUR if own else OTHER_COLOUR for own in ours],
        capsize=3,
    )
    for place, spread in enumerate(spreads):
        median = factor * spread["median"]
        text = f" {median:,.0f}" if median >= 1000 else f" {median:.4g}"
        axes.text(0, place, text, color="white", verticalalignment="center")
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.invert_yaxis()


def lines(axes: "Axes", figures: Sequence[Report], over: str, value: str, factor: float = 1) -> None:
    """A line for each name, on logarithmic axes."""
    for name in dict.fromkeys(figure["name"] for figure in figures):
        points = [(figure[over], factor * figure[value]) for figure in figures if figure["name"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """One for all panels, which have the same as `axes`."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def distances(spreads: Sequence[Report], factor: float = 1) -> list[list[float]]:
    """From the medians to p10 and to p90."""
    return [[factor * abs(spread["median"] - spread[end]) for spread in spreads] for end in ("p10", "p90")]


def made_from(kind: type[T], values: Report) -> T:
    """A dataclass from those of `values` that are its fields."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(run(main))
