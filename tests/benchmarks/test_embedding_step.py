"""The benchmarks' statistics, ids and contestants, and a whole run. No figure is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import embedding_step
from common import contestants
from common.entries import OUR_OPTIMIZERS, PEERS, TUNED_MEMORY, Entry, entries
from common.measure import Comparison, Spread, machine, table, versions
from common.workload import Workload

PROGRAM = Path(embedding_step.__file__)
TINY = Workload(tables=2, rows=50, dim=4, batch_size=8, bag=3)

# ---------------------------------------------------------------- statistics


def test_spread_is_the_median_and_the_outer_deciles():
    assert Spread.of(range(101)) == Spread(median=50, p10=10, p90=90)
    assert Spread.of([3.0]) == Spread(3, 3, 3)


def test_comparison_takes_each_round_by_itself():
    ours = [[1.0, 1.0, 9.0], [2.0], [4.0], [1.0], [1.0]]
    peer = [[3.0, 3.0, 3.0], [6.0], [12.0], [3.0], [3.0]]
    comparison = Comparison.of(peer, ours)
    assert comparison.ratio == Spread(3, 3, 3)
    assert comparison.rounds == 5
    assert comparison.doubt is None


@pytest.mark.parametrize(
    ("peer", "doubt"),
    [
        ([2.0] * 4, "too few rounds"),
        ([2.0, 2.1, 2.2, 2.3, 2.4], None),
        ([1.0, 2.0, 3.0, 4.0, 5.0], "too noisy"),
    ],
)
def test_comparison_says_when_it_is_in_doubt(peer, doubt):
    comparison = Comparison.of([[seconds] for seconds in peer], [[1.0]] * len(peer))
    assert comparison.doubt is None if doubt is None else doubt in comparison.doubt


def test_table_aligns_names_left_and_figures_right():
    text = table(["", "", "ms"], [["a", "one", "1.5"], ["long", "x", "10.25"]])
    assert text.splitlines() == ["              ms", "a     one    1.5", "long  x    10.25"]


def test_machine_and_versions_are_json():
    assert machine()["cores"] == len(os.sched_getaffinity(0))
    assert 0 < machine()["available_bytes"] <= machine()["memory_bytes"]
    assert versions()["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # the build, in one of them
    json.dumps([machine(), versions()])


# ---------------------------------------------------------------- what is raced


def test_batches_are_a_function_of_the_workload():
    batches = TINY.batches()
    count, *shape = batches.shape
    assert count >= 8
    assert shape == [TINY.tables, TINY.batch_size, TINY.bag]
    assert batches.dtype == np.int64
    assert np.array_equal(np.unique(batches), np.arange(TINY.rows))
    assert np.array_equal(batches, TINY.batches())
    assert not np.array_equal(batches, Workload(2, 50, 4, 8, 3, seed=1).batches())


@pytest.mark.parametrize("optimizer", PEERS)
def test_ours_races_first_and_peers_have_all_threads_or_one(optimizer):
    ours, *peers = entries(optimizer, 2, ["fbgemm", "embedding_bag"])
    assert ours == Entry("damo_torchrec", OUR_OPTIMIZERS[optimizer], 2)
    assert {peer.library: peer.optimizer for peer in peers} == PEERS[optimizer]
    assert [(peer.threads, peer.spins) for peer in peers] == [(2, True), (1, False)] * len(PEERS[optimizer])
    assert len(entries(optimizer, 1, ["fbgemm", "embedding_bag"])) == 1 + len(PEERS[optimizer])


def test_settings_reach_the_environment():
    assert Entry("FBGEMM", "SGD", 1).environment() == {"OMP_NUM_THREADS": "1"}
    both = Entry("FBGEMM", "SGD", 2, spins=True, tuned_memory=True)
    assert both.environment() == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE", **TUNED_MEMORY}


def weights_of(trainee, library):
    """All rows: (tables, rows, dim)."""
    if library == "damo_torchrec":
        rows = [table.get(torch.arange(TINY.rows)) for table in trainee._module.tables()]
    elif library == "FBGEMM":
        rows = [bag.weight.detach() for bag in trainee._module.embedding_bags.values()]
    else:
        rows = [bag.weight.detach() for bag in trainee._bags]
    return torch.stack(rows).clone()


RACED = sorted(
    {(entry.library, entry.optimizer) for kind in PEERS for entry in entries(kind, 1, embedding_step.PEER_NAMES)}
)


@pytest.mark.parametrize(("library", "optimizer"), RACED)
def test_a_step_updates_the_rows_of_its_batch_and_no_others(library, optimizer):
    trainee = contestants.build(Entry(library, optimizer, 1), TINY)
    before = weights_of(trainee, library)
    trainee.step(trainee.batch(0))
    moved = weights_of(trainee, library) - before
    # The gradient of a bag is that of each of its rows.
    ids = torch.from_numpy(TINY.batches()[0])
    gradient = trainee._gradient.view(TINY.batch_size, TINY.tables, 1, TINY.dim).expand(-1, -1, TINY.bag, -1)
    summed = torch.zeros_like(before)
    for table_number in range(TINY.tables):
        of_table = gradient[:, table_number].reshape(-1, TINY.dim)
        summed[table_number].index_add_(0, ids[table_number].flatten(), of_table)
    assert torch.equal(moved.any(dim=2), summed.any(dim=2))
    if optimizer == "SGD":
        torch.testing.assert_close(moved, -contestants.LEARNING_RATE * summed, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- the program


def test_quick_gives_way_to_what_is_given():
    quick = embedding_step.parse_arguments(["--quick", "--rows", "7_000"])
    assert (quick.rows, quick.steps) == (7000, embedding_step.QUICK["steps"])
    full = embedding_step.parse_arguments([])
    assert (full.rows, full.steps) == (embedding_step.FULL["rows"], embedding_step.FULL["steps"])


def test_every_combination_of_options_is_raced():
    options = ["--dims", "16", "64", "--bag", "1", "20", "--optimizer", "sgd", "adam", "--threads", "1"]
    races = embedding_step.races(embedding_step.parse_arguments(options))
    assert [(w.dim, w.bag, race[0].optimizer) for w, race in races] == [
        (dim, bag, optimizer) for dim in (16, 64) for bag in (1, 20) for optimizer in ("SGD", "SparseAdam")
    ]


@pytest.mark.parametrize("wrong", [["--rows", "0"], ["--zipf", "-1"], ["--seed", "-1"], ["--json", "/no/such/place"]])
def test_wrong_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as exit_:
        embedding_step.parse_arguments(wrong)
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def run(*options):
    command = [sys.executable, str(PROGRAM), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_more_memory_than_there_is_is_refused_before_anything_is_measured():
    result = run("--rows", 10**9)
    assert result.returncode == 1
    assert "GiB are available" in result.stderr


@pytest.mark.slow
def test_a_tiny_run_prints_a_table_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    options = ["--tables", 2, "--rows", 100, "--batch-size", 16, "--steps", 3, "--threads", 1]
    result = run(*options, "--optimizer", "rowwise_adagrad", "--json", report)
    assert result.returncode == 0, result.stderr
    assert "2 tables × 100 rows, dim 64" in result.stdout
    assert result.stdout.count("too few rounds") == 2
    (race,) = json.loads(report.read_text())["races"]
    assert race["workload"] == {
        "tables": 2,
        "rows": 100,
        "dim": 64,
        "batch_size": 16,
        "bag": 1,
        "zipf": 1.05,
        "seed": 0,
    }
    assert [c["library"] for c in race["contestants"]] == ["damo_torchrec", "FBGEMM", "nn.EmbeddingBag"]
    for contestant in race["contestants"]:
        assert contestant["library"] in result.stdout
        assert [len(seconds) for seconds in contestant["rounds"]] == [3]
        assert contestant["step_seconds"]["median"] == np.median(contestant["rounds"][0])
    assert not list(tmp_path.glob("*benchmark*"))
