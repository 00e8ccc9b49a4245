"""The benchmark of growing tables: what is trained on, memory, the report, and a whole run. No figure is looked at."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import scale
from common.budget import MIB
from common.program import RefusedError
from common.resident import peak_bytes, reset_peak, resident_bytes
from common.turns import Turn
from parts.scale import case as scale_case
from parts.scale import model as scale_model
from parts.scale.case import Case
from parts.scale.report import Result, as_json, in_words, opening_in_words
from processes import run

TINY = Case(
    rows=1000,
    dim=4,
    features=2,
    batch_size=10,
    hot_rows=50,
    hot_share=0.6,
    memory_budget=64 * MIB,
    threads=1,
    direct_io=False,
    seed=0,
)

# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("rows", [1000, 997, 51])
def test_cold_rows_are_asked_for_once_and_hot_ones_have_their_share(rows):
    case = replace(TINY, rows=rows)
    hot = {position * case._stride % rows for position in range(case.hot_rows)}
    batches = [case.batch(number).tolist() for number in range(case.most_steps)]
    cold = [id_ for batch in batches for id_ in batch if id_ not in hot]
    assert len(cold) == len(set(cold)) == case.most_steps * 8
    assert all(0 <= id_ < rows for batch in batches for id_ in batch)
    assert all(len(batch) == 20 and sum(id_ in hot for id_ in batch) == 12 for batch in batches)
    with pytest.raises(ValueError, match=f"{rows} rows suffice for {case.most_steps} steps, got step"):
        case.batch(case.most_steps)


def test_a_batch_is_a_function_of_the_case_and_its_number():
    assert np.array_equal(TINY.batch(3), TINY.batch(3))
    assert TINY.batch(3).dtype == np.int64
    assert not np.array_equal(TINY.batch(3), replace(TINY, seed=1).batch(3))


def test_more_rows_are_read_to_fill_memory_than_it_holds():
    case = replace(TINY, features=8, batch_size=4096)
    assert case.steps_to_fill * case.cold_ids_per_batch * (4 * (case.dim + 1) + 34) > 22 * MIB


# ---------------------------------------------------------------- memory


def most_and_last(size: int) -> tuple[int, int]:
    """By how much this process grows while it holds so many bytes, and after."""
    base = resident_bytes()
    reset_peak()
    held = b"x" * size
    del held
    most = peak_bytes() - base
    reset_peak()
    return most, peak_bytes() - base


def test_a_peak_is_remembered_until_it_is_reset():
    most, last = run(most_and_last, 256 * MIB)
    assert most >= 250 * MIB
    assert last < 100 * MIB


# ---------------------------------------------------------------- stores


@pytest.fixture
def path(tmp_path):
    scale_model.load(TINY, tmp_path / "store", lambda _: None)
    return tmp_path / "store"


def test_a_loaded_store_has_all_rows_and_is_closed(path):
    store, _ = scale_model.open_store(TINY, path)
    with store:
        ids, weights = next(store.table(scale_model.TABLE).items())
        assert torch.equal(ids, torch.arange(TINY.rows))
        assert weights.any(dim=1).all()


@pytest.mark.parametrize("from_disk", [False, True])
def test_an_opener_leaves_the_store_as_it_was(path, from_disk):
    names = {file.name for file in path.rglob("*")}
    assert scale_model.Opener(TINY, path).open(from_disk) > 0
    assert {file.name for file in path.rglob("*")} == names


def test_training_misses_the_cold_rows_of_each_batch(path, monkeypatch):
    monkeypatch.setattr(scale_case, "FILL", 1e-3)  # the whole cache would take more rows than there are
    assert TINY.steps_to_fill < TINY.most_steps - 1
    trained = scale_model.Trained(TINY, path)
    with trained._store:
        _, misses_before = trained.counts()
        batch = trained.batch(0)
        trained.step(batch)
        _, misses = trained.counts()
        assert misses - misses_before == TINY.cold_ids_per_batch
        assert trained.growth() > 0
        assert trained.checkpoint() > 0
        assert trained._store.step == TINY.steps_to_fill + 1


# ---------------------------------------------------------------- report


def result(case, seconds, hit_rate=0.6, growth=64 * MIB):
    turns = [Turn([each] * 2, 0, 0) for each in seconds]
    return Result(case, 1.0, 10**6, turns, hit_rate, {"training": growth, "checkpoint": growth}, 0.5)


@pytest.mark.parametrize(("seconds", "verdict"), [(0.119, "met"), (0.121, "missed")])
def test_steps_of_all_sizes_are_to_take_about_as_long(seconds, verdict):
    words = in_words([result(TINY, [0.1] * 5), result(replace(TINY, rows=2000), [seconds] * 5)])
    assert f"takes {seconds / 0.1:.2f} times as long as over 1,000 " in words
    assert f"the target of at most 1.2 is {verdict}\n" in words


def test_sizes_with_different_hit_rates_do_not_compare():
    results = [result(TINY, [0.1] * 5), result(replace(TINY, rows=2000), [0.1] * 5, hit_rate=0.62)]
    assert "BUT hit rates differ: 62.00% and 60.00%" in in_words(results)
    assert [each["doubt"] is None for each in as_json(results)] == [True, False]


@pytest.mark.parametrize(
    ("budget", "growth", "verdict"),
    [(64, 128, "met"), (64, 129, "missed"), (1000, 1100, "met"), (1000, 1101, "missed")],
)
def test_a_process_may_grow_by_the_budget_and_a_tenth_or_64_mib(budget, growth, verdict):
    words = in_words([result(replace(TINY, memory_budget=budget * MIB), [0.1] * 5, growth=growth * MIB)])
    assert words.endswith(
        f"the process grew by {growth} MiB; the target of at most {words.split()[-4]} MiB is {verdict}"
    )


def test_opening_may_take_a_second():
    words = opening_in_words(10 * 2**30, {"here": [0.9, 1.0, 5.0], "there": [1.1]}).splitlines()
    assert [line.endswith("is met") for line in words] == [True, False]
    assert "a store of 10.00 GiB, files here, opens and answers in 1.000 s" in words[0]


# ---------------------------------------------------------------- the program


def test_quick_gives_way_to_what_is_given():
    quick = scale.parse_arguments(["--quick", "--rows", "700_000"])
    assert (quick.rows, quick.steps) == ([700_000], scale.QUICK["steps"])
    full = scale.parse_arguments([])
    assert full.rows == [1_000_000, 10_000_000, 100_000_000]
    assert [round(scale.of_size(rows, full).times_budget) for rows in full.rows] == [1, 10, 101]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--rows", "0"], "at least 1"),
        (["--rows", "1000"], "1,000 suffice for 0 steps"),
        (["--rows", "500_000"], "137 steps that ask for new ones, but 279 are needed, 87 of them to fill memory"),
        (["--rows", "9_000_000", "9_000_000"], "sizes must differ"),
        (["--hot-share", "1"], "between 0 and 1"),
    ],
)
def test_wrong_options_are_refused(wrong, why, capsys):
    with pytest.raises(SystemExit) as exit_:
        scale.parse_arguments(wrong)
    assert exit_.value.code == 2
    assert f"{wrong[0]}: " in (error := capsys.readouterr().err)
    assert why in error


def test_a_disk_without_room_is_refused_with_figures(tmp_path, monkeypatch, capsys):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(0, 0, 10 * 2**30))
    case = replace(TINY, rows=100_000_000, dim=16)
    with pytest.raises(RefusedError, match=r"need about 13\.6 GiB .* but 10\.0 GiB are free: take fewer --rows"):
        scale.check_room([case], tmp_path, available=2**30)
    printed = capsys.readouterr().out
    assert "about 8.9 GiB" in printed
    assert "NOTE: the page cache will not hold all of it" in printed
    scale.check_room([replace(case, rows=50_000_000)], tmp_path, available=5 * 2**30)
    assert "NOTE" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_run_prints_tables_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    sizes = ["--dim", 64, "--features", 2, "--batch-size", 1024, "--hot-rows", 500, "--hot-share", 0.5]
    options = [*sizes, "--rows", 150_000, 110_000, "--steps", 2, "--openings", 1, "--threads", 1, "--json", report]
    command = [sys.executable, scale.__file__, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(report.read_text())
    assert written["benchmark"] == "scale"
    assert [Case(**size["case"]).rows for size in written["sizes"]] == [110_000, 150_000]
    for size in written["sizes"]:
        assert size["hit_rate"] == 0.5
        assert [len(seconds) for seconds in size["rounds"]] == [2]
        assert size["growth_bytes"]["training"] > 10 * MIB
        assert f"{size['case']['rows']:,} rows" in done.stdout
    assert all(len(seconds["each"]) == 1 for seconds in written["opening"]["seconds"].values())
    assert written["opening"]["disk_bytes"] == written["sizes"][1]["disk_bytes"]
    assert not [file for file in Path(tmp_path).iterdir() if "damo" in file.name]
