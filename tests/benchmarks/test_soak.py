"""The program that trains for hours: its ids, what it looks at, what it calls growth, and a whole run."""

import itertools
import json
import os
import sys
import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

import soak
from common.program import RefusedError
from common.resident import resident_bytes, threads
from parts.soak import bounds
from parts.soak.bounds import LifeSample, Lives, RowRange
from parts.soak.case import Case, EndlessCase
from parts.soak.report import LEAST_SAMPLES, MIB, Sample, as_json, disk_bytes, figures, grows, in_words

TINY = Case(
    tables=2,
    dim=4,
    batch_size=16,
    new_share=0.25,
    zipf=1.05,
    memory_budget=64 * MIB,
    times_budget=1e-4,
    keep=2,
    threads=1,
    seed=0,
)

# ---------------------------------------------------------------- ids


def test_a_batch_is_a_function_of_the_case_and_the_step():
    assert np.array_equal(TINY.batch(3), TINY.batch(3))
    assert TINY.batch(3).shape == (2, 16)
    assert TINY.batch(3).dtype == np.int64
    assert not np.array_equal(TINY.batch(3), replace(TINY, seed=1).batch(3))


def test_each_step_brings_new_ids_until_all_rows_are_there_and_none_after():
    known: set[int] = set()
    for step in range(3 * TINY.steps_to_fill):
        ids = set(TINY.batch(step).ravel().tolist())
        new = len(ids - known)
        known |= ids
        if step < TINY.steps_to_fill - 1:
            assert new == TINY.tables * TINY.arrivals
        elif step >= TINY.steps_to_fill:
            assert new == 0
        assert np.array_equal(TINY.arriving(step), TINY.batch(step)[:, : TINY.arrivals])
    assert len(known) == TINY.tables * TINY.rows


def test_rows_take_as_many_bytes_as_the_budget_times_what_is_asked_for():
    assert TINY.tables * TINY.rows * (4 * 5 + 8) == pytest.approx(1e-4 * 64 * MIB, rel=0.01)


ENDLESS = EndlessCase(**asdict(TINY))


def test_no_id_arrives_twice_in_an_endless_case_and_old_ones_are_asked_for_again():
    known: set[int] = set()
    again = 0
    for step in range(20 * ENDLESS.steps_to_fill):
        arriving = set(ENDLESS.arriving(step).ravel().tolist())
        assert not arriving & known
        others = set(ENDLESS.batch(step)[:, ENDLESS.arrivals :].ravel().tolist())
        known |= arriving
        assert others <= known
        again += len(others - arriving)
    assert len(known) > 15 * ENDLESS.tables * ENDLESS.rows
    assert again > 1000


# ---------------------------------------------------------------- samples


def test_a_sample_tells_what_the_process_takes(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    before = Sample.take(tmp_path, 1.0, 2, 3, [0.1, 0.2, 0.3])
    assert (before.seconds, before.steps, before.rows, before.step_median) == (1.0, 2, 3, 0.2)
    assert before.step_p99 == pytest.approx(0.298)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with (tmp_path / "file").open("rb"):
        held = bytearray(os.urandom(1 << 20)) * 64
        after = Sample.take(tmp_path, 1.0, 2, 3, [0.1])
    done.set()
    thread.join()
    assert after.descriptors == before.descriptors + 1
    assert after.threads == before.threads + 1
    assert after.resident_bytes - before.resident_bytes == pytest.approx(len(held), rel=0.2)
    assert after.anonymous_bytes - before.anonymous_bytes == pytest.approx(len(held), rel=0.2)
    assert threads() >= 1
    assert resident_bytes() >= after.anonymous_bytes - len(held)


def test_a_file_with_several_names_takes_its_place_once(tmp_path):
    (tmp_path / "rows").mkdir()
    file = tmp_path / "rows" / "file"
    file.write_bytes(b"x" * 100_000)
    alone = disk_bytes(tmp_path)
    (tmp_path / "another").hardlink_to(file)
    assert alone == disk_bytes(tmp_path) == pytest.approx(100_000, rel=0.1)


# ---------------------------------------------------------------- growth

STEADY = Sample(
    seconds=0.0,
    steps=100,
    rows=1000,
    resident_bytes=500 * MIB,
    anonymous_bytes=400 * MIB,
    descriptors=100,
    threads=10,
    disk_bytes=1 << 30,
    step_median=0.01,
    step_p99=0.02,
)


def growing(field: str, by: float) -> list[Sample]:
    """Twelve samples, each with more of it."""
    return [replace(STEADY, **{field: getattr(STEADY, field) + by * number}) for number in range(12)]


@pytest.mark.parametrize(
    ("field", "allowed", "figure"),
    [
        ("resident_bytes", 8 * MIB, "resident MiB"),
        ("anonymous_bytes", 8 * MIB, "anonymous MiB"),
        ("descriptors", 32, "descriptors"),
        ("threads", 2, "threads"),
    ],
)
def test_what_grows_by_more_than_is_allowed_is_told(field, allowed, figure):
    """The medians of the first and the last quarter are nine samples apart."""
    assert not grows(growing(field, allowed / 9), 64 * MIB)
    more = growing(field, 1.01 * allowed / 9)
    assert grows(more, 64 * MIB)
    assert as_json(more, more, 64 * MIB)["grows"]
    assert f"GROWS: {figure}, by" in in_words(more, 64 * MIB)
    assert "nothing grows" in in_words(growing(field, -allowed), 64 * MIB)


@pytest.mark.parametrize("field", ["disk_bytes", "rows", "steps", "step_median", "step_p99"])
def test_what_may_grow_is_no_reason_to_fail(field):
    assert not grows(growing(field, 1e9), 64 * MIB)


def test_one_high_sample_is_no_growth():
    samples = [STEADY] * 11 + [replace(STEADY, resident_bytes=1 << 40)]
    assert not grows(samples, 64 * MIB)
    assert f"{(1 << 40) / MIB:,.1f}" in in_words(samples, 64 * MIB)


# ---------------------------------------------------------------- bounds of rows that come and go

KEPT = ENDLESS.rows - ENDLESS.rows // 16
LIVES = Lives(sighted=10, created=50, idle_by_steps=1, idle_by_time=1, cut=1, forgotten_sightings=1, file_bytes=1000)
WITHIN = LifeSample(
    steps=1,
    least_rows=KEPT,
    most_rows=ENDLESS.rows,
    rows=ENDLESS.tables * ENDLESS.rows,
    lives=LIVES,
    disk_bytes=1000,
    resident_bytes=64 * MIB,
)


def broken(sample: LifeSample, warm: bool = True) -> list[str]:
    held = bounds.held(ENDLESS, [WITHIN, sample], [WITHIN, sample] if warm else [WITHIN])
    words = bounds.in_words(held, sample.lives)
    names = [bound.name for bound in held if bound.broken]
    assert [line for line in words.splitlines() if "BROKEN" in line] == [f"BROKEN: {name}" for name in names]
    assert ("every bound holds" in words) == (not names)
    return names


def test_a_run_within_its_bounds_passes():
    assert broken(WITHIN) == []
    assert broken(replace(WITHIN, least_rows=1), warm=False) == []  # as on the way to the first cut


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"most_rows": ENDLESS.rows + 1}, "most rows of a table"),
        ({"least_rows": KEPT - ENDLESS.rows // 64 - ENDLESS.batch_size - 1}, "least rows of a table"),
        ({"disk_bytes": 5 << 30}, "disk with checkpoints, MiB"),
        ({"resident_bytes": 129 * MIB}, "memory of the store, MiB"),
        ({"lives": replace(LIVES, file_bytes=65 * MIB)}, "files of live rows, MiB"),
        ({"lives": replace(LIVES, idle_by_steps=0)}, "removed by idle steps"),
        ({"lives": replace(LIVES, idle_by_time=0)}, "removed by idle time"),
        ({"lives": replace(LIVES, cut=0)}, "removed by max_rows"),
        ({"lives": replace(LIVES, forgotten_sightings=0)}, "removed by within_steps"),
    ],
)
def test_what_goes_beyond_a_bound_is_told(changes, name):
    assert broken(replace(WITHIN, **changes)) == [name]


def test_files_may_take_half_as_much_again_as_rows_and_sightings():
    case = replace(ENDLESS, dim=64)
    sample = replace(WITHIN, rows=1000, lives=replace(LIVES, sighted=100))
    assert bounds.live_bytes(case, sample) == pytest.approx(1000 * 289 + 100 * 33, rel=0.02)
    assert bounds.files_allowed(case, sample) == 1.5 * bounds.live_bytes(case, sample) + case.memory_budget


def test_the_least_and_the_most_of_any_step_are_kept():
    rows = RowRange()
    for some in ([5, 9], [7, 3], [4, 4]):
        rows.add(some)
    assert (rows.least, rows.most) == (3, 9)


# ---------------------------------------------------------------- the program


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--new-share", "1"], ["--keep", "0"], ["--times-budget", "-1"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        soak.parse_arguments(wrong)
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_quick_gives_way_to_what_is_given():
    assert soak.parse_arguments([]).minutes == 60
    assert soak.parse_arguments(["--quick"]).minutes == 3
    assert soak.parse_arguments(["--quick", "--minutes", "7"]).minutes == 7


def test_a_disk_without_room_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="take less --times-budget"):
        soak.check_room(replace(TINY, times_budget=1e9), tmp_path)


OPTIONS = ["--batch-size=64", "--times-budget=0.005", "--minutes=0.02", "--checkpoint-every=0.3", "--keep=2"]


def start(monkeypatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", *OPTIONS, *options])
    monkeypatch.setenv("TORCH_LOGS", "")
    # A clock that goes by how often it is asked.
    monkeypatch.setattr(soak, "time", SimpleNamespace(monotonic=itertools.count(0.0, 0.02).__next__))
    soak.main()


def test_a_run_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "grows", lambda *_: False)  # so short a run says nothing about that
    report = tmp_path / "report.json"
    start(monkeypatch, "--new-share=0.9", "--sample-every=0.01", "--json", str(report))
    printed = capsys.readouterr().out
    written = json.loads(report.read_text())
    assert written["benchmark"] == "soak"
    assert written["warm_samples"] >= LEAST_SAMPLES
    assert f"{written['warm_samples']} of {len(written['samples'])} samples" in printed
    samples = [Sample(**sample) for sample in written["samples"]]
    assert samples == sorted(samples, key=lambda sample: sample.steps)
    case = soak.case_of(soak.parse_arguments([*OPTIONS, "--new-share=0.9"]))
    assert samples[-1].rows == case.tables * case.rows
    assert samples[-1].disk_bytes > 0
    for figure in figures(64 * MIB):
        assert figure.name in printed
        assert figure.name in written["growth"]


@pytest.mark.slow
def test_a_run_of_rows_that_come_and_go_tells_of_its_bounds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(soak, "grows", lambda *_: False)
    report = tmp_path / "report.json"
    monkeypatch.setattr(bounds, "RULES", {"max_rows": "cut"})  # the others come to their first row later
    start(monkeypatch, "--lives", "--checkpoint-every=2", "--sample-every=0.01", "--json", str(report))
    assert "every bound holds" in capsys.readouterr().out
    written = json.loads(report.read_text())
    assert len(written["lives"]) == len(written["samples"])
    assert not any(bound["broken"] for bound in written["bounds"])


@pytest.mark.slow
def test_a_broken_bound_ends_the_program_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr(soak, "grows", lambda *_: False)
    monkeypatch.setattr(bounds, "FILES_FACTOR", -1e9)
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, "--lives", "--checkpoint-every=2", "--sample-every=0.01")
    assert exit_.value.code == 1
    assert "BROKEN: files of live rows, MiB" in capsys.readouterr().out


def test_growth_ends_the_program_with_status_1(monkeypatch):
    monkeypatch.setattr(soak, "grows", lambda *_: True)
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, "--new-share=0.9", "--sample-every=0.01")
    assert exit_.value.code == 1


def test_a_run_that_is_too_short_to_tell_is_refused(monkeypatch):
    with pytest.raises(RefusedError, match="too few samples"):
        start(monkeypatch, "--new-share=0.9", "--minutes=0.001", "--sample-every=0.01")
