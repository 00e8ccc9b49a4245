"""benchmarks/cold.py and the program in C++ that it measures RocksDB with. No figure is looked at."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import rocksdict

import cold
from common import raw
from common.budget import LEAST_BUDGET
from common.cold_store import ScatteredIds, load, payload_bytes
from common.entries import OURS
from common.program import RefusedError
from common.workload import Workload
from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import Manifest
from parts.cold.readers import Ours, Setup
from parts.cold.reading import DISK, RAW, Reading
from parts.cold.report import Race, write_back_as_json, write_back_in_words
from parts.cold.training import WriteBack, memory_for

TINY = Workload(tables=3, rows=640, dim=4, batch_size=16)
ALL_BATCHES = TINY.rows // TINY.batch_size
BUDGET = LEAST_BUDGET
needs_program = pytest.mark.slow  # it is built first


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    loaded = []
    path = load(tmp_path_factory.mktemp("cold") / "store", TINY, BUDGET, loaded.append)
    assert sum(loaded) == TINY.tables * TINY.rows
    return path


@pytest.fixture
def ids(checkpoint):
    return ScatteredIds(TINY, checkpoint)


@pytest.fixture
def setup(checkpoint, ids):
    return Setup(checkpoint, TINY, ids, BUDGET, threads=2, in_flight=4, direct_io=False)


# ---------------------------------------------------------------- ids


def test_every_row_is_in_one_batch(ids):
    batches = [ids.batch(number) for number in range(ALL_BATCHES)]
    assert {batch.shape for batch in batches} == {(TINY.tables, TINY.batch_size)}
    together = np.sort(np.concatenate(batches, axis=1), axis=1)
    assert np.array_equal(together, np.broadcast_to(np.arange(TINY.rows), together.shape))
    assert not np.array_equal(batches[0], np.sort(batches[0], axis=1))


def test_keys_are_the_batches_under_the_tables_numbers_on_disk(checkpoint, ids):
    tables = Manifest.read(checkpoint).tables
    numbers = [tables[f"table_{table}"].number for table in range(TINY.tables)]
    expected = [
        [numbers[table], id_] for batch in (1, 2) for table in range(TINY.tables) for id_ in ids.batch(batch)[table]
    ]
    assert ids.keys(1, 3).tolist() == expected


def test_popular_ids_are_scattered(ids):
    ranks = np.tile(np.arange(1, TINY.rows + 1), (TINY.tables, 1))
    of_ranks = ids.of_ranks(ranks)
    assert np.array_equal(np.sort(of_ranks, axis=1), ranks - 1)
    assert not np.array_equal(of_ranks, ranks - 1)


# ---------------------------------------------------------------- the program


def digests(directory: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}


@needs_program
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("write_rows", [0, 7])
def test_multi_get_finds_the_rows_that_are_there_and_changes_no_file(checkpoint, ids, threads, write_rows):
    before = digests(checkpoint / "rows")
    keys = ids.keys(0, 5)
    absent = keys[:10] + np.array([0, TINY.rows])
    rate = raw.multi_get(
        checkpoint / "rows", np.concatenate([keys, absent]), 32, threads, False, write_rows, payload_bytes(TINY)
    )
    assert rate.found == len(keys)
    assert len(rate.seconds) == -(-(len(keys) + len(absent)) // 32)
    assert rate.rows_per_second == pytest.approx((len(keys) + len(absent)) / sum(rate.seconds))
    assert digests(checkpoint / "rows") == before


@needs_program
def test_write_times_every_batch_and_changes_no_file(checkpoint, ids):
    before = digests(checkpoint / "rows")
    keys = ids.keys(0, 5)
    rate = raw.write(checkpoint / "rows", keys, 100, payload_bytes(TINY))
    assert len(rate.seconds) == 3
    assert 0 < rate.rows_per_second < len(keys) / sum(rate.seconds)  # with the flush
    assert digests(checkpoint / "rows") == before


def stored(db: Path) -> dict[bytes, bytes]:
    options = rocksdict.Options(raw_mode=True)
    return dict(rocksdict.Rdict(str(db), options, access_type=rocksdict.AccessType.read_only()).items())


@needs_program
def test_the_rows_that_are_written_are_those_of_the_ids_in_the_format_of_a_store(
    checkpoint, ids, tmp_path, monkeypatch
):
    copy = tmp_path / "rows"
    _core.link_or_copy_rows(str(checkpoint / "rows"), str(copy))
    before = stored(copy)
    monkeypatch.setattr(raw, "_copy", lambda db: nullcontext(copy))
    keys = ids.keys(2, 4)
    raw.write(checkpoint / "rows", keys, 64, payload_bytes(TINY))
    after = stored(copy)
    names = {int(table).to_bytes(4, "big") + (int(id_) + 2**63).to_bytes(8, "big") for table, id_ in keys}
    assert {name for name in after if after[name] != before.get(name)} == names
    assert before.keys() == after.keys()
    assert {(value[0], len(value)) for value in after.values()} == {(1, 1 + payload_bytes(TINY))}


@needs_program
def test_the_disk_is_read(checkpoint):
    try:
        assert raw.disk_limit(checkpoint / "rows", in_flight=3, seconds=0.05) > 0
    except RefusedError as error:
        if "direct I/O" not in str(error):
            raise
        pytest.skip(str(error))


@needs_program
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "must be read, write or disk"),
        (["read", "db"], "expected DB and IDS"),
        (["read", "db", "ids"], "--memory-budget is missing"),
        (["read", "--threads"], "--threads needs a value"),
        (["read", "--thread", "2"], "unknown option --thread"),
        (["disk", "--in-flight", "0"], '--in-flight must be a number above 0, got "0"'),
        (["disk", "--in-flight", "1", "--seconds", "1"], "no file of 4 KiB"),
        (["disk", "/no/such/file", "--in-flight", "1", "--seconds", "1"], "/no/such/file for direct I/O: No such file"),
    ],
)
def test_the_program_refuses_wrong_options(arguments, message):
    result = subprocess.run([raw.program(), *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert message in result.stderr


@needs_program
def test_errors_of_the_program_say_what_is_wrong(checkpoint, ids, tmp_path):
    with pytest.raises(RefusedError, match="cannot open /no/such/db"):
        raw.multi_get(Path("/no/such/db"), ids.keys(0, 1), 8, 1, False)
    with pytest.raises(RefusedError, match="-1 is not a table number"):
        raw.multi_get(checkpoint / "rows", ids.keys(0, 1) * [-1, 1], 8, 1, False)
    (tmp_path / "ids").write_bytes(b"x" * 17)
    options = ["--rows-per-batch", 1, "--threads", 1, "--memory-budget", BUDGET]
    with pytest.raises(RefusedError, match="must hold pairs of int64, table number and id, but has 17 bytes"):
        raw._run("read", checkpoint / "rows", tmp_path / "ids", *options)


def test_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"ids must be int64 of the shape \(n, 2\), got int32 of \(3, 2\)"):
        raw.multi_get(Path("db"), np.zeros((3, 2), np.int32), 8, 1, False)


def test_a_program_that_cannot_be_built_is_an_error_that_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "BUILD", tmp_path / "build")
    if shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])):
        monkeypatch.setattr(raw, "ROOT", tmp_path / "nothing")
        with pytest.raises(RefusedError, match=r"(?s)cannot build raw_rocksdb: .*nothing.* does not exist"):
            raw.program.__wrapped__()
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RefusedError, match="CMake is needed"):
        raw.program.__wrapped__()


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize("prefetch", [False, True])
def test_our_lookups_read_every_row_from_the_disk(setup, prefetch):
    with Ours(setup, prefetch) as reader:
        turns = [reader.run(2), reader.run(3)]
    assert [len(turn.seconds) for turn in turns] == ([1, 1] if prefetch else [2, 3])


def test_rows_in_memory_are_not_taken_for_misses(setup, ids, monkeypatch):
    first = ids.batch(0)
    monkeypatch.setattr(ids, "batch", lambda number: first)
    with Ours(setup, prefetch=False) as reader, pytest.raises(RuntimeError, match="not all were misses"):
        reader.run(1)


# ---------------------------------------------------------------- the report


def race(direct_io: bool, ours: float, raw_: float, disk: float) -> Race:
    seconds = {(OURS, "forward"): ours, (RAW, "2 threads"): raw_} | ({(DISK, "64"): disk} if direct_io else {})
    return Race(direct_io, 1000, BUDGET, {name: [Reading([each] * 2, 1.0)] * 5 for name, each in seconds.items()})


@pytest.mark.parametrize(("ours", "verdict"), [(0.1, "met"), (0.12, "missed")])
def test_a_rate_is_compared_with_multi_get_where_the_page_cache_has_the_files(ours, verdict):
    words = race(False, ours, 0.1, 0).in_words()
    assert f"{0.1 / ours:.2f} of the rate of RocksDB MultiGet" in words
    assert f"the target of 0.90 is {verdict}" in words
    assert "10,000" in words


@pytest.mark.parametrize(("ours", "verdict"), [(0.1, "met"), (0.2, "missed")])
def test_a_rate_is_compared_with_the_disk_under_direct_io(ours, verdict):
    measured = race(True, ours, 0.08, 0.1)
    assert f"the target of 0.75 is {verdict}" in measured.in_words()
    (mine, *_) = measured.as_json()["readers"]
    assert mine["times"][DISK]["median"] == pytest.approx(0.1 / ours)
    assert mine["times"][RAW]["median"] == pytest.approx(0.08 / ours)
    assert mine["times"][RAW]["target"] is None
    json.dumps(measured.as_json())


def test_write_amplification_is_what_rocksdb_wrote_for_each_byte_of_rows():
    result = WriteBack(BUDGET, 100, 5, [1.0, 2.0], [1000, 3000], 1_000_000, raw.Rate(2000.0, [1.0, 1.0], 4000))
    assert result.rates == [1000, 1500]
    assert result.amplification == 2.5
    assert "write amplification 2.50" in write_back_in_words(result)
    assert write_back_as_json(result)["rows_per_second"]["median"] == 1250


def test_the_memory_of_training_is_limited_also_below_the_least_budget():
    assert memory_for(LEAST_BUDGET) == (LEAST_BUDGET, 0)
    assert memory_for(1000) == (LEAST_BUDGET, 1000)


# ---------------------------------------------------------------- the whole program


def test_quick_and_full_sizes_have_rows_for_every_round():
    for options in ([], ["--quick"]):
        arguments = cold.parse_arguments(options)
        assert arguments.rounds * (1 + arguments.batches) * arguments.batch_size <= arguments.rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "1000"], "168960 rows of each table"),
        (["--memory-budget", "63"], "at least 64 MiB"),
        (["--parts", "disk"], "--parts"),
    ],
)
def test_wrong_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        cold.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_more_than_disk_or_memory_hold_is_refused(tmp_path):
    cold.check_room(tmp_path, 1000, 2 << 30)
    with pytest.raises(RefusedError, match="page cache has to hold"):
        cold.check_room(tmp_path, 2 << 20, 1 << 20)
    with pytest.raises(RefusedError, match=f"but {tmp_path} has"):
        cold.check_room(tmp_path, 1 << 60, 1 << 62)


@needs_program
def test_a_tiny_run_prints_tables_and_writes_json(tmp_path):
    report = tmp_path / "report.json"
    sizes = [
        "--tables",
        2,
        "--rows",
        3000,
        "--dim",
        8,
        "--batch-size",
        100,
        "--rounds",
        2,
        "--batches",
        2,
        "--steps",
        60,
    ]
    options = [*sizes, "--parts", "page_cache", "write_back", "--json", report]
    command = [sys.executable, cold.__file__, *options]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("too few rounds") == 2
    figures = json.loads(report.read_text())
    assert figures["options"]["rows"] == 3000
    readers = figures["page_cache"]["readers"]
    assert [reader["name"] for reader in readers] == [OURS, OURS, RAW]
    assert [reader["setting"].partition(",")[0] for reader in readers] == ["forward", "prefetch", "2 threads"]
    assert [list(map(len, reader["rounds"])) for reader in readers] == [[2, 2], [1, 1], [2, 2]]
    rows, seconds = figures["write_back"]["rows"], figures["write_back"]["seconds"]
    assert len(rows) == len(seconds)
    assert min(itertools.chain(rows, seconds)) > 0
    assert f"{sum(rows):,} rows of 44 bytes written back" in result.stdout
    assert not list(tmp_path.glob("damo*"))
