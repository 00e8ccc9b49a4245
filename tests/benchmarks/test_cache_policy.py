"""The benchmark of the cache policy: what is counted, and a whole run. No figure is looked at."""

import functools
import json
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

import cache_policy
from common.program import RefusedError
from parts.cache_policy.case import HINDSIGHT, KNOWN, LRU, OURS, Case, Outcome
from parts.cache_policy.policies import lru_misses, measure, static_misses, train

TINY = Case(tables=3, rows=50, dim=4, batch_size=8, zipf=1.05, share=0.2, steps=21, backend="memory", seed=0)
# Wide rows: few of them fill the least cache.
SMALL = Case(tables=2, rows=40_000, dim=512, batch_size=2048, zipf=0.6, share=0.15, steps=30, backend="memory", seed=0)


def nothing():
    pass


def counted(case):
    """The row numbers of each step that is counted."""
    return [case.numbers(ranks).tolist() for ranks in case.batches()][case.first_counted :]


def test_batches_are_a_function_of_the_case():
    batches = np.stack(list(TINY.batches()))
    assert batches.shape == (TINY.steps, TINY.tables, TINY.batch_size)
    assert np.array_equal(np.unique(batches), np.arange(TINY.rows))
    assert np.array_equal(batches, np.stack(list(TINY.batches())))
    assert not np.array_equal(batches, np.stack(list(replace(TINY, seed=1).batches())))


def test_half_of_the_steps_are_counted():
    assert TINY.ids == len(counted(TINY)) * TINY.tables * TINY.batch_size == 11 * 24
    assert replace(TINY, steps=1).first_counted == 0


@pytest.mark.parametrize("cached_rows", [0, 7, 149])
def test_the_best_static_choice_misses_what_the_most_frequent_rows_leave(cached_rows):
    counts = Counter(number for step in counted(TINY) for number in step)
    misses = static_misses(TINY, cached_rows)
    assert misses[HINDSIGHT] == TINY.ids - sum(n for _, n in counts.most_common(cached_rows))
    popular = [table * TINY.rows + rank for rank in range(TINY.rows) for table in range(TINY.tables)][:cached_rows]
    assert misses[KNOWN] == TINY.ids - sum(counts[number] for number in popular)


@pytest.mark.parametrize("cached_rows", [1, 30, 150])
def test_lru_misses_as_often_as_the_standard_librarys(cached_rows):
    cached = functools.lru_cache(cached_rows)(lambda _: None)
    before = 0
    for step, ranks in enumerate(TINY.batches()):
        if step == TINY.first_counted:
            before = cached.cache_info().misses
        for number in TINY.numbers(ranks).tolist():
            cached(number)
    assert lru_misses(TINY, cached_rows, nothing) == cached.cache_info().misses - before


def test_the_cache_holds_the_share_that_it_is_asked_for():
    _, cached_rows = train(SMALL, nothing)
    assert cached_rows == pytest.approx(SMALL.share * SMALL.all_rows, rel=0.1)


def test_counts_are_the_same_each_time_and_wherever_the_rows_are():
    outcome = measure(SMALL)
    assert outcome == measure(SMALL) == measure(replace(SMALL, backend="rocksdb"))
    assert outcome.ids == SMALL.ids
    assert outcome.misses[HINDSIGHT] <= outcome.misses[KNOWN]
    assert outcome.misses[HINDSIGHT] < min(outcome.misses[OURS], outcome.misses[LRU])


def test_a_share_that_any_cache_exceeds_is_refused():
    with pytest.raises(RefusedError, match=r"but the cache of a store has at least 22\.0 MiB"):
        TINY.budget()


def test_steps_that_ask_for_no_more_rows_than_are_in_memory_are_refused():
    with pytest.raises(RefusedError, match="take more --steps"):
        measure(replace(SMALL, steps=2, batch_size=64))


@pytest.mark.parametrize(("known", "doubt"), [(1000, False), (1020, False), (1021, True)])
def test_hindsight_that_knows_chance_is_doubted(known, doubt):
    outcome = Outcome(10_000, 10, {OURS: 1100, HINDSIGHT: 1000, KNOWN: known, LRU: 1500})
    assert bool(outcome.doubt) is doubt
    words = cache_policy.in_words(TINY, outcome)
    assert "misses 1.100 times as often as the best choice in hindsight; the target of at most 1.1 is met" in words
    assert ("BUT too few ids" in words) is doubt


def test_quick_gives_way_to_what_is_given():
    quick, _ = cache_policy.parse_arguments(["--quick", "--steps", "7"])
    assert (quick.steps, quick.rows) == (7, cache_policy.QUICK["rows"])
    full, _ = cache_policy.parse_arguments([])
    assert full == Case(26, 100_000, 16, 2048, 1.05, 0.1, cache_policy.FULL["steps"], "memory", 0)
    for case in (quick, full):
        case.budget()  # is not refused


@pytest.mark.parametrize("wrong", [["--share", "0"], ["--share", "1"], ["--rows", "0"], ["--backend", "tape"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        cache_policy.parse_arguments(wrong)
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_run_prints_a_table_and_writes_json(tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.json"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(SMALL).items()]
    monkeypatch.setattr(sys, "argv", ["cache_policy.py", *options, "--json", str(report)])
    monkeypatch.setenv("TORCH_LOGS", "")
    cache_policy.main()
    printed = capsys.readouterr().out
    assert "2 tables × 40,000 rows, dim 512" in printed
    written = json.loads(report.read_text())
    assert written["benchmark"] == "cache_policy"
    assert Case(**written["case"]) == SMALL
    assert written["misses"] == measure(SMALL).misses
    for policy, misses in written["misses"].items():
        assert f"{misses:,}" in printed
        assert written["ratios"][HINDSIGHT][policy] == misses / written["misses"][HINDSIGHT]
