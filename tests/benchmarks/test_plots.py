"""Plots of what each benchmark's own code writes, and of files that are something else."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import cache_policy
import plots
import scale
from common import report
from common.entries import Entry
from common.program import RefusedError, run
from common.raw import Rate
from common.turns import Turn
from common.workload import Workload
from parts.cache_policy.case import HINDSIGHT, KNOWN, LRU, OURS, Outcome
from parts.cold.reading import DISK, RAW, Reading
from parts.cold.report import Race, write_back_as_json
from parts.cold.training import WriteBack
from parts.dlrm import report as dlrm_report
from parts.dlrm.figures import Use
from parts.dlrm.race import DENSE, Racer
from parts.dlrm.roofs import Raw
from parts.dlrm.training import Outcome as DlrmOutcome
from parts.scale import report as scale_report

TINY = Workload(tables=2, rows=50, dim=4, batch_size=8)
TURNS = [Turn([0.1, 0.2, 0.3], 0, 0, [0.0, 0.1, 0.3])] * 2


def of_embedding_step():
    raced = [Entry(OURS, "SGD", 2), Entry("FBGEMM", "SGD", 2, spins=True)]
    return {"races": [report.as_json(TINY, [report.Result(entry, TURNS) for entry in raced])] * 2}


def of_dlrm():
    use = Use(0.9, rows_read=200, rows_written=100, cached_rows=1, memory_bytes=0, growth_bytes=0)
    outcomes = [
        DlrmOutcome(Racer(DENSE, "RowWiseAdagrad", 2), TURNS),
        DlrmOutcome(Racer(OURS, "RowWiseAdagrad", 2, percent=10), TURNS, budget=2**26, use=use),
    ]
    rates = {1: Raw(rows_read=100, rows_written=50, reads=1000, writes=500)}
    return {"races": [dlrm_report.as_json(outcomes, rates, TINY), dlrm_report.as_json(outcomes[:1], {}, TINY)]}


def of_cold():
    readers = {(name, "setting"): [Reading([0.1, 0.2], 1.0)] * 2 for name in (OURS, RAW, DISK)}
    written = WriteBack(2**26, 100, 5, [1.0, 2.0], [1000, 3000], 10**6, Rate(2000.0, [1.0, 1.0], 4000))
    return {
        "page_cache": Race(False, 100, 2**26, readers).as_json(),
        "direct_io": Race(True, 100, 2**26, readers).as_json(),
        "write_back": write_back_as_json(written),
    }


def of_scale():
    case = scale.of_size(10**6, scale.parse_arguments([]))
    growth = {"training": 80 << 20, "checkpoint": 90 << 20}
    results = [
        scale_report.Result(replace(case, rows=rows), 1.0, 10**6, TURNS, 0.9, growth, 0.5) for rows in (10**6, 10**8)
    ]
    return {"opening": scale_report.opening_as_json(10**6, {"here": [0.1]}), "sizes": scale_report.as_json(results)}


def of_cache_policy():
    case, _ = cache_policy.parse_arguments([])
    return cache_policy.as_json(case, Outcome(10_000, 10, {OURS: 1100, HINDSIGHT: 1000, KNOWN: 1020, LRU: 1500}))


def of_checkpoint():
    return {
        "dirty_bytes": 7 << 20,
        "stalls": [{"background": background, "excess": 0.5} for background in (True, False) for _ in range(3)],
    }


def of_serving():
    lookups = [
        {"name": name, "batch": batch, "ids_per_bag": ids, "requests": n, "median": 0.002, "ratio": 2.0}
        for name in ("Gather by row number", "kernels")
        for batch in (1, 16)
        for ids in (1, 5)
        for n in (1, 9)
    ]
    models = [{"name": "kernels", "batch": batch, "p50": 0.003, "p99": 0.004} for batch in (1, 16)]
    return {"lookups": lookups, "models": models}


def of_serving_load():
    taken = {"p50": 0.004, "p99": 0.009, "max": 0.1}
    quiet = {"stalled": 0, "deltas": 0, "per_second": 1200.0, **taken}
    return {"load": [quiet, {**quiet, "stalled": 300}, {**quiet, "deltas": 7, "per_second": 900.0}]}


def of_memory_limit():
    contestants = [
        {"name": name, "points": [[1000, 3 << 20], [2000, 4 << 20]], "killed": killed}
        for name, killed in (("damo_torchrec", None), ("nn.EmbeddingBag", 2000))
    ]
    return {"options": {"limit": 4, "budget": 2, "rows": 4000, "dim": 8}, "contestants": contestants}


REPORTS = {
    "embedding_step": of_embedding_step,
    "dlrm": of_dlrm,
    "cold": of_cold,
    "scale": of_scale,
    "cache_policy": of_cache_policy,
    "checkpoint": of_checkpoint,
    "serving": of_serving,
    "serving_load": of_serving_load,
    "memory_limit": of_memory_limit,
}


def write(directory, name):
    """As the benchmark writes it."""
    file = directory / f"{name}.json"
    file.write_text(json.dumps({"benchmark": name} | REPORTS[name]()))
    return file


def texts(figure):
    """All that is written in the panels."""
    labels = []
    for axes in figure.axes:
        labels += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.get_yticklabels(), *axes.texts]
        labels += axes.get_legend().get_texts() if axes.get_legend() else []
    return "\n".join(label.get_text() for label in labels)


def test_each_benchmark_of_make_bench_has_a_plot():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    benchmarks = re.search(r"^BENCHMARKS := (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(plots.PLOTS) == set(REPORTS) == set(benchmarks)


@pytest.mark.parametrize(
    ("name", "panels", "shown"),
    [
        ("embedding_step", 2, ["damo_torchrec, SGD\n2 threads", "FBGEMM, SGD\n2 threads, spinning", " 200", "ms/step"]),
        ("dlrm", 2, [DENSE, "10 % of the rows, page cache, prefetch off", " 40", "samples/s"]),
        ("cold", 3, ["page cache", "direct I/O", DISK, "write-back", " 2,000", "rows/s"]),
        ("scale", 2, ["hit rate of 90.0%", "ms/step", "MiB"]),
        ("checkpoint", 1, ["7 MiB", "in the background", "by the caller", " 0.5", "s above the median"]),
        ("serving", 5, ["times a Gather", "ids in a bag: 5", "whole models", "samples of a request", "kernels"]),
        (
            "serving_load",
            1,
            [
                "300 stalled, 0 deltas meanwhile\n1,200 requests/s",
                "0 stalled, 7 deltas meanwhile\n900 requests/s",
                " 4",
                "ms: median, and up to p99",
            ],
        ),
        ("memory_limit", 1, ["nn.EmbeddingBag, killed at 2,000 rows", "damo_torchrec", "limit", "MiB"]),
        ("cache_policy", 1, ["damo_torchrec\n1.100 ×", " 11", "% of ids"]),
    ],
)
def test_a_plot_shows_the_report(name, panels, shown, tmp_path):
    figure = plots.draw(write(tmp_path, name))
    assert len(figure.axes) == panels
    assert [text for text in shown if text not in texts(figure)] == []


def test_a_part_that_was_not_measured_is_not_drawn(tmp_path):
    file = tmp_path / "cold.json"
    file.write_text(json.dumps({"benchmark": "cold", "page_cache": of_cold()["page_cache"]}))
    assert len(plots.draw(file).axes) == 1


def test_each_report_of_a_directory_gets_its_plot(tmp_path, monkeypatch, capsys):
    for name in REPORTS:
        write(tmp_path, name)
    monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path)])
    plots.main()
    images = sorted(tmp_path.glob("*.png"))
    assert capsys.readouterr().out.split() == [str(image) for image in images]
    assert [image.stem for image in images] == sorted(REPORTS)
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("{", "is not the report of a benchmark"),
        ("[]", "is not the report of a benchmark"),
        ('{"races": []}', "is not the report of a benchmark"),
        ('{"benchmark": "chess"}', "is of an unknown benchmark, 'chess'; known are embedding_step, dlrm, cold"),
        ('{"benchmark": "dlrm"}', "lacks 'races', which a report of dlrm has"),
    ],
)
def test_other_files_are_refused_by_name(contents, message, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(contents)
    with pytest.raises(RefusedError, match=f"x.json {message}"):
        plots.draw(file)


def test_an_empty_directory_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plots.py", str(tmp_path)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert run(plots.main) == 1
    assert f"error: there are no JSON files in {tmp_path}" in capsys.readouterr().err
