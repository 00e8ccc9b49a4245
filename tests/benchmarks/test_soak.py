"""The program that trains for hours: its ids, what it looks at, what it calls growth, and a whole run."""

import itertools
import json
import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import soak
from common.program import RefusedError
from common.resident import resident_bytes, threads
from parts.soak.case import Case
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


def test_growth_ends_the_program_with_status_1(monkeypatch):
    monkeypatch.setattr(soak, "grows", lambda *_: True)
    with pytest.raises(SystemExit) as exit_:
        start(monkeypatch, "--new-share=0.9", "--sample-every=0.01")
    assert exit_.value.code == 1


def test_a_run_that_is_too_short_to_tell_is_refused(monkeypatch):
    with pytest.raises(RefusedError, match="too few samples"):
        start(monkeypatch, "--new-share=0.9", "--minutes=0.001", "--sample-every=0.01")
