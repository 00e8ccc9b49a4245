"""The DLRM benchmark: memory budgets, what is trained on, the roofs, and a whole run. No figure is looked at."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from common import raw
from common.budget import MIB, budget_for, cache_share
from common.cold_store import collection
from common.contestants import table_configs
from common.entries import OURS
from common.program import RefusedError
from common.raw import Rate
from common.turns import Turn
from common.workload import Workload
from damo_torchrec.checkpoints.manifest import Manifest
from parts.dlrm import inputs as dlrm_inputs
from parts.dlrm import models as dlrm_models
from parts.dlrm import report as dlrm_report
from parts.dlrm import roofs as dlrm_roofs
from parts.dlrm.figures import Figures, Use, is_steady, use_between
from parts.dlrm.race import (
    DENSE,
    DEVICE,
    EMBEDDING_BAG,
    FBGEMM,
    MANAGED_CACHING,
    OPTIMIZER,
    Plan,
    Racer,
    races,
)
from parts.dlrm.training import Outcome

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "dlrm.py"
TINY = Workload(tables=2, rows=50, dim=4, batch_size=8)


@pytest.fixture(scope="module")
def program():
    """The benchmark: an example has the same file name."""
    spec = importlib.util.spec_from_file_location("dlrm_benchmark", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _no_rest():
    """Nobody waits for compactions, of which there are none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.cold_store.IDLE_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return dlrm_inputs.make(tmp_path_factory.mktemp("inputs"), TINY, history=3, batches=6)


# ---------------------------------------------------------------- who races


def test_the_least_budget_is_never_undercut_and_others_have_the_cache_that_was_asked_for():
    assert cache_share(64 * MIB) == 22 * MIB
    assert budget_for(1) == 64 * MIB
    for cache in (23 * MIB, 500 * MIB, 3000 * MIB, 20000 * MIB):
        budget = budget_for(cache)
        assert cache_share(budget) >= cache > cache_share(budget - MIB)


def test_a_budget_holds_the_rows_that_it_is_for():
    workload = Workload(tables=2, rows=100_000, dim=64)
    racer = Racer(OURS, OPTIMIZER, 1, percent=60)
    with damo.EmbeddingStore(memory_budget=racer.budget(workload)) as store:
        tables = collection(store, workload).tables()
        for ids in torch.split(torch.arange(workload.rows), 20_000):
            for table in tables:
                table.set(ids, torch.zeros(len(ids), workload.dim))
        cached = sum(stats.cached_rows for stats in store.stats().tables.values())
    assert cached == pytest.approx(0.6 * workload.tables * workload.rows, rel=0.05)


def test_peers_race_where_all_rows_are_in_memory_and_ours_in_every_way_where_they_are_not():
    in_memory, on_disk = races([100, 10], [False, True], [0, 1], peers=True, threads=2)
    assert [racer.library for racer in in_memory] == [DENSE, FBGEMM, FBGEMM, OURS]
    assert [racer.library for racer in on_disk] == [DENSE, OURS, OURS, OURS, OURS]
    ways = [(racer.direct_io, racer.depth) for racer in on_disk[1:]]
    assert ways == [(False, 0), (False, 1), (True, 0), (True, 1)]
    assert len({racer.setting for racer in on_disk[1:]}) == 4
    assert [racer.library for racer in races([100], [False], [0], peers=False, threads=1)[0]] == [DENSE, OURS]


def test_on_a_gpu_peers_race_with_rows_where_it_can_have_them():
    (race,) = races([100], [False], [0], peers=True, threads=2, device="cuda")
    assert {racer.device for racer in race} == {"cuda"}
    peers = [(racer.library, racer.rows_in) for racer in race if racer.library not in (DENSE, OURS)]
    assert peers == [(FBGEMM, DEVICE), (FBGEMM, MANAGED_CACHING), (EMBEDDING_BAG, DEVICE)]
    assert len({(racer.name, racer.setting) for racer in race}) == len(race)


def test_the_share_in_memory_is_what_was_asked_for_or_what_the_least_budget_holds():
    racer = Racer(OURS, OPTIMIZER, 2, percent=10)
    assert 0.10 < racer.share_in_memory(Workload(tables=26, rows=50_000, dim=16)) < 0.20
    assert racer.share_in_memory(Workload(tables=26, rows=1_000_000, dim=16)) == pytest.approx(0.10, rel=0.02)
    assert racer.share_in_memory(TINY) == 1
    assert Racer(OURS, OPTIMIZER, 2).share_in_memory(Workload(tables=26, rows=1_000_000, dim=16)) == 1


@pytest.mark.parametrize(("steps", "turn", "rounds"), [(200, 20, 10), (25, 5, 5), (3, 1, 3), (1000, 20, 50)])
def test_steps_are_divided_into_turns(steps, turn, rounds):
    plan = Plan(steps, warm_up=100, latency=50)
    assert (plan.turn, plan.rounds) == (turn, rounds)
    assert plan.batches(depth=1) == 100 + (rounds + 1) * (turn + 1) + 51 + 1


# ---------------------------------------------------------------- what is trained


def test_inputs_are_kept_and_others_are_refused(tmp_path):
    keep = tmp_path / "kept"
    with dlrm_inputs.inputs(TINY, 2, 4, keep) as made:
        first = made
    written = made.batches.stat().st_mtime_ns
    with dlrm_inputs.inputs(TINY, 2, 3, keep) as again:
        assert again == first
        assert again.batches.stat().st_mtime_ns == written
    for history, batches in [(2, 5), (3, 4)]:
        with (
            pytest.raises(RefusedError, match="has 4 batches after 2 steps"),
            dlrm_inputs.inputs(TINY, history, batches, keep),
        ):
            pass
    with pytest.raises(RefusedError, match=r"has no inputs\.json"), dlrm_inputs.inputs(TINY, 2, 4, tmp_path):
        pass


def test_inputs_that_are_not_kept_are_removed():
    with dlrm_inputs.inputs(TINY, 1, 2, None) as made:
        batches = np.load(made.batches)
        with damo.EmbeddingStore(made.checkpoint, read_only=True) as store:
            assert [len(table) for table in collection(store, TINY).tables()] == [TINY.rows] * TINY.tables
            assert store.step == 1
    assert batches.shape == (2, TINY.tables, TINY.batch_size, 1)
    assert np.array_equal(batches[:, 1], TINY.feature(1, 2))
    assert not np.array_equal(batches[:, 1], TINY.feature(1, 2, part=1))
    assert not made.directory.exists()


@pytest.fixture
def build(inputs, tmp_path):
    """Builds trainings, and closes their stores in the end."""
    trainings = []

    def build(library, depth=0):
        directory = tmp_path / str(len(trainings))
        trainings.append(dlrm_models.build(Racer(library, OPTIMIZER, 1, depth=depth), TINY, inputs, directory))
        return trainings[-1]

    yield build
    for training in trainings:
        if isinstance(training, dlrm_models.StoreTraining):
            training._store.close()


def dense_weights(training):
    return {name: w.detach().clone() for name, w in training._model.named_parameters() if "embedding_bag" not in name}


def test_free_embeddings_train_the_whole_dense_part(build):
    training = build(DENSE)
    before = dense_weights(training)
    for number in range(2):
        training.step(training.batch(number))
    moved = [not torch.equal(before[name], weights) for name, weights in dense_weights(training).items()]
    assert len(moved) == 2 * (3 + 3)
    assert all(moved)


@pytest.mark.parametrize("library", [FBGEMM, EMBEDDING_BAG, OURS])
def test_a_step_updates_the_rows_of_its_batch(library, build, inputs):
    training = build(library)
    tables = training._model.sparse_arch.embedding_bag_collection

    def rows():
        if library != OURS:
            return torch.stack([bag.weight.detach() for bag in tables.embedding_bags.values()]).clone()
        return torch.stack([table.get(torch.arange(TINY.rows)) for table in tables.tables()])

    training.go_to(3)
    before = rows()
    training.step(training.batch(0))
    moved = (rows() != before).any(dim=2)
    for table, ids in enumerate(np.load(inputs.batches)[3]):
        assert np.array_equal(moved[table].nonzero().flatten().numpy(), np.unique(ids))


def test_prefetching_trains_on_the_same_batches(build):
    weights = []
    for depth in (0, 2):
        training = build(OURS, depth)
        training.warm_up(2)
        training.go_to(4)  # of 6: they come again
        for number in range(5):
            training.step(training.batch(number))
        weights.append(dense_weights(training))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_no_batch_is_made_in_a_step(build, monkeypatch):
    training = build(OURS, depth=1)
    for number in range(3):
        batch = training.batch(number)
        with monkeypatch.context() as patch:
            patch.setattr(dlrm_models, "Batch", None)
            training.step(batch)


def test_a_store_tells_its_figures(build):
    training = build(OURS)
    training.read(0, 1.0)
    training.read(1, 0.5)
    figures = training.figures()
    assert figures.cached_rows == figures.rows_read == 75
    training.warm_up(1)
    asked = training.figures().hits + training.figures().misses - figures.hits - figures.misses
    assert asked == TINY.tables * TINY.batch_size


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("read", "rows", "steady"),
    [
        ([9.0, 9.0, 9.0], 0, False),  # too short
        ([20.0, 15.0, 10.0, 10.1], 50, True),
        ([20.0, 15.0, 10.0, 10.1], 60, False),  # the cache holds more
        ([20.0, 15.0, 12.0, 10.0], 0, False),
        ([9.0] * 4 + [8.0, 10.0, 10.0, 8.0], 0, True),
        ([0.0] * 4, 0, True),
    ],
)
def test_a_warm_up_ends_in_a_steady_state(read, rows, steady):
    assert is_steady(read, rows) is steady


def test_use_is_the_difference_of_two_moments():
    before, after = Figures(10, 10, 5, 0, 100, 1, 2), Figures(100, 20, 25, 40, 90, 3, 4)
    assert use_between(before, after, 10) == Use(0.9, 2.0, 4.0, 90, 3, 4)
    assert use_between(None, after, 10) is None


# ---------------------------------------------------------------- roofs


def outcome(racer, seconds, use=None, latency=None):
    turns = [Turn(list(of_round), 0, 0, [0.0] * len(of_round)) for of_round in seconds]
    return Outcome(racer, turns, budget=64 * MIB, use=use, latency=latency)


def test_the_page_cache_adds_to_the_dense_part_and_a_disk_works_beside_it():
    rates = dlrm_roofs.Raw(rows_read=100, rows_written=50, reads=1000, writes=500)
    use = Use(0.9, rows_read=200, rows_written=100, cached_rows=1, memory_bytes=0, growth_bytes=0)
    buffered = outcome(Racer(OURS, OPTIMIZER, 1, percent=10), [[1.0]], use)
    direct = outcome(Racer(OURS, OPTIMIZER, 1, percent=10, direct_io=True), [[1.0]], use)
    assert rates.roof(buffered, 1.0) == pytest.approx(1.0 + 0.2 + 0.2)
    assert rates.roof(direct, 1.0) == 1.0
    assert rates.roof(direct, 0.1) == pytest.approx(0.2)


def test_unpopular_rows_are_distinct_sorted_and_beyond_those_that_a_cache_holds(inputs):
    keys = dlrm_roofs.unpopular(TINY, inputs, cached_rows=40, rows_per_batch=20, batches=3)
    assert keys.dtype == np.int64
    assert keys.shape == (60, 2)
    numbers = [Manifest.read(inputs.checkpoint).tables[config.name].number for config in table_configs(TINY)]
    for batch in np.split(keys, 3):
        assert [tuple(key) for key in batch] == sorted({tuple(key) for key in batch})
        assert set(batch[:, 0]) == set(numbers)
        for table, number in enumerate(numbers):
            assert not np.isin(batch[batch[:, 0] == number, 1], TINY.by_popularity(table)[:20]).any()


def test_contestants_share_the_rates_of_their_kind_of_io(inputs, monkeypatch):
    calls = []

    def multi_get(_db, ids, rows_per_batch, threads, direct_io, write_rows=0, payload_bytes=0, **_):
        calls.append((rows_per_batch, threads, direct_io, write_rows, payload_bytes))
        return Rate(1000.0, [], len(ids))

    monkeypatch.setattr(raw, "multi_get", multi_get)
    monkeypatch.setattr(raw, "write", lambda *_, **__: Rate(500.0, [], 0))
    monkeypatch.setattr(Racer, "share_in_memory", lambda *_: 0.1)
    use = Use(0.9, rows_read=20.2, rows_written=9.9, cached_rows=40, memory_bytes=0, growth_bytes=0)
    (race,) = races([10], [False, True], [0, 1], peers=False, threads=2)
    outcomes = [outcome(racer, [[1.0]], use) for racer in race[1:]]
    rates = dlrm_roofs.of_race(outcomes, TINY, inputs)
    assert calls == [(20, 2, False, 0, 0), (20, 2, False, 0, 0), (20, 64, True, 10, 28)]
    assert [rates[place].writes for place in range(4)] == [500.0, 500.0, None, None]


# ---------------------------------------------------------------- report


def test_targets_are_told_with_whether_they_are_met():
    use = Use(0.9, rows_read=100, rows_written=0, cached_rows=5, memory_bytes=0, growth_bytes=200 * MIB)
    slow_step = Turn([0.1] * 999 + [9.0], 0, 0, [0.1 * step for step in range(1000)])
    even_steps = Turn([0.1] * 1000, 0, 0, [0.1 * step for step in range(1000)])
    dense = outcome(Racer(DENSE, OPTIMIZER, 2), [[1.0]] * 5, latency=even_steps)
    ours = outcome(Racer(OURS, OPTIMIZER, 2, percent=10), [[1.3]] * 5, use, latency=slow_step)
    rates = {1: dlrm_roofs.Raw(rows_read=100, rows_written=0, reads=500.0, writes=None)}
    roof, latency, slowest, memory = "\n".join(dlrm_report.verdicts([dense, ours], rates, TINY)).splitlines()
    assert "92.3%" in roof
    assert roof.endswith("target 90%: met")
    assert "MISSED" not in latency  # one step of 1,000 may be as slow as it likes: its p99.9 is interpolated below
    assert "9000 at 99.9 s" in slowest
    assert "MORE than its budget of 64 MiB" in memory
    in_memory = outcome(Racer(OURS, OPTIMIZER, 2), [[1.1]] * 5, use)
    (missed, _) = dlrm_report.verdicts([dense, in_memory], {}, TINY)
    assert "90.9%" in missed
    assert "target 93%: MISSED" in missed


# ---------------------------------------------------------------- the program


def test_quick_gives_way_to_what_is_given(program):
    quick = program.parse_arguments(["--quick", "--budgets", "50", "0.5", "--io", "direct"])
    assert (quick.rows, quick.budgets, quick.io) == (program.QUICK["rows"], [50, 0.5], ["direct"])
    full = program.parse_arguments([])
    assert (full.rows, full.budgets, full.io) == (1_000_000, [100, 50, 10, 1], ["buffered", "direct"])


@pytest.mark.parametrize("wrong", [["--budgets", "101"], ["--budgets", "0"], ["--io", "slow"], ["--warm-up", "0"]])
def test_wrong_options_are_refused(program, wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        program.parse_arguments(wrong)
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_a_race_that_needs_more_memory_than_there_is_is_refused(program):
    (race,) = races([50], [False], [0], peers=False, threads=1)
    program.refuse_too_large(race, TINY, 4 << 30)
    with pytest.raises(RefusedError, match="50 % of the rows in memory need about"):
        program.refuse_too_large(race, Workload(rows=10**8), 4 << 30)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is refused where there is no GPU")
def test_a_gpu_that_is_not_there_is_refused(program, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dlrm.py", "--quick", "--device", "cuda"])
    with mock.patch.dict(os.environ), pytest.raises(RefusedError, match="--device cuda"):
        program.main()


@pytest.mark.slow
def test_a_tiny_run_prints_a_table_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    options = [
        "--tables",
        2,
        "--rows",
        100,
        "--dim",
        4,
        "--batch-size",
        16,
        "--steps",
        3,
        "--warm-up",
        25,
        "--history",
        2,
    ]
    options += ["--latency-steps", 5, "--budgets", 10, "--io", "buffered", "--prefetch", "on", "--threads", 1]
    command = [sys.executable, PROGRAM, *options, "--json", report]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "2 tables × 100 rows, dim 4" in result.stdout
    assert "10 % of the rows, page cache, prefetch 1, 5 steps in a row" in result.stdout
    (race,) = json.loads(report.read_text())["races"]
    assert race["percent"] == 10
    dense, ours = race["contestants"]
    assert (dense["library"], ours["library"], ours["depth"]) == (DENSE, OURS, 1)
    for contestant in (dense, ours):
        assert [len(seconds) for seconds in contestant["rounds"]] == [1, 1, 1]
        assert len(contestant["latency"]["seconds"]) == 5
        median = np.median(np.concatenate(contestant["rounds"]))
        assert contestant["samples_per_second"]["median"] == pytest.approx(16 / median)
    assert ours["use"]["cached_rows"] <= 200
    assert not list(tmp_path.glob("*benchmark*"))
