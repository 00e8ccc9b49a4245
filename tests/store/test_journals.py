"""Checkpoints whose newest rows are in a journal, opened to go on from: whole, or not at all."""

import re
import resource
import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damage import Model, Sample, flip, make_sample, records_of
from damo_torchrec import _core
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.store import session
from kills import then_die
from mixed_run import Rows, assert_same_rows, rows_of
from processes import run, run_until_killed
from support import A_HANDFUL_OF_ROWS

ALL_ROWS = 0  # no limit
# The journal fits, or rows of it are written on the way.
CACHES = pytest.mark.parametrize("cache_bytes", [ALL_ROWS, A_HANDFUL_OF_ROWS], ids=["roomy", "tight"])


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Sample:
    """Tables of float32 and float16 with rows in files, and over them in three logs: new, changed, deleted ones."""
    made = make_sample(tmp_path_factory.mktemp("sample"), journal=True)
    assert len(made.logs()) == 3
    return made


def open_store(path: Path, cache_bytes: int = ALL_ROWS, **arguments: object) -> damo.EmbeddingStore:
    options = damo.StoreOptions(cache_bytes=cache_bytes, num_threads=2)
    return damo.EmbeddingStore(path, memory_budget="64MiB", options=options, **arguments)


def expected_rows(sample: Sample) -> Rows:
    """As rocksdict reads the checkpoint."""
    names = {table.number: name for name, table in Manifest.read(sample.checkpoint).tables.items()}
    rows: Rows = {name: {} for name in names.values()}
    for (number, row_id), value in sample.records.items():
        if number in names:
            rows[names[number]][row_id] = value[1:]
    return rows


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def store_of(sample: Sample, path: Path) -> Path:
    """A copy of the store, for damaging."""
    shutil.copytree(sample.store, path)
    return path


def logs_of(path: Path, sample: Sample) -> list[Path]:
    return [path / "checkpoints" / sample.checkpoint.name / log for log in sample.logs()]


# ------------------------------------------------------------------ opened


@CACHES
def test_a_store_goes_on_from_rows_in_a_journal(sample, tmp_path, cache_bytes):
    path = store_of(sample, tmp_path / "store")
    before = contents(path / "checkpoints")
    expected = expected_rows(sample)
    with open_store(path, cache_bytes) as store:
        assert (store.stats().rows_written > 0) == (cache_bytes == A_HANDFUL_OF_ROWS)
        Model(store)
        ids = list(expected["a"])
        read = store.table("a").get(ids)
        assert read.numpy().tobytes() == b"".join(expected["a"][i][:32] for i in ids)
        assert {name: len(table) for name, table in store.tables().items()} == {n: len(r) for n, r in expected.items()}
        assert_same_rows(rows_of(store), expected)
    assert contents(path / "checkpoints") == before


@CACHES
def test_the_next_checkpoint_holds_what_the_journal_held(sample, tmp_path, cache_bytes):
    """Also of tables that nobody has opened; rocksdict reads it."""
    with open_store(store_of(sample, tmp_path / "store"), cache_bytes) as store:
        checkpoint = store.checkpoint()
        assert records_of(checkpoint, tmp_path / "untouched") == sample.records
        Model(store).ebc.tables()[0].set([5], torch.ones(1, 8))
        second = store.checkpoint()
    changed = records_of(second, tmp_path / "changed")
    differing = {key for key in changed.keys() | sample.records.keys() if changed.get(key) != sample.records.get(key)}
    assert differing == {(Manifest.read(second).tables["a"].number, 5)}


@CACHES
def test_a_store_may_go_on_from_a_checkpoint_of_another(sample, tmp_path, cache_bytes):
    with open_store(tmp_path / "other", cache_bytes, restore=sample.checkpoint) as store:
        Model(store)
        (checkpoint,) = store.checkpoints()
        assert records_of(checkpoint, tmp_path / "scratch") == sample.records
        assert_same_rows(rows_of(store), expected_rows(sample))


@CACHES
def test_a_restore_brings_back_the_journal(sample, tmp_path, cache_bytes):
    with open_store(store_of(sample, tmp_path / "store"), cache_bytes) as store:
        model = Model(store)
        for table in model.ebc.tables():
            table.delete(list(range(-2000, 2000)))
        store.checkpoint()
        store.restore(sample.checkpoint.name)
        assert_same_rows(rows_of(store), expected_rows(sample))


# ------------------------------------------------------------------ killed while a store is opened


def die_with_the_journal_loaded(path: Path) -> None:
    session._core.Store = then_die(_core.Store)
    open_store(path, A_HANDFUL_OF_ROWS)


def test_a_process_that_is_killed_while_it_loads_a_journal_loses_nothing(sample, tmp_path):
    path = store_of(sample, tmp_path / "store")
    before = contents(path / "checkpoints")
    for _ in range(2):
        run_until_killed(die_with_the_journal_loaded, path)
        assert (path / "live").is_dir()
        assert contents(path / "checkpoints") == before
    with open_store(path) as store:
        Model(store)
        assert_same_rows(rows_of(store), expected_rows(sample))


# ------------------------------------------------------------------ damaged


DAMAGES = {
    "a bit at the beginning": lambda logs: flip(logs[0], 6000),
    "a bit in the middle": lambda logs: flip(logs[1], logs[1].stat().st_size // 2),
    "a bit at the end": lambda logs: flip(logs[2], logs[2].stat().st_size - 3),
    "cut short": lambda logs: logs[1].write_bytes(logs[1].read_bytes()[:-100]),
    "longer": lambda logs: logs[2].write_bytes(logs[2].read_bytes() + b"\0"),
    "missing": lambda logs: logs[0].unlink(),
    "one in the place of another": lambda logs: logs[0].write_bytes(logs[2].read_bytes()),
    "one too many": lambda logs: shutil.copy(logs[0], logs[2].with_name("999999.log")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_found_and_nothing_of_it_kept(sample, tmp_path, damage):
    path = store_of(sample, tmp_path / "store")
    logs = logs_of(path, sample)
    DAMAGES[damage](logs)
    damaged = contents(path / "checkpoints")
    for cache_bytes in (ALL_ROWS, A_HANDFUL_OF_ROWS):
        with pytest.raises(damo.CorruptionError, match=r"\d+\.log"):
            open_store(path, cache_bytes)
        assert not list(path.glob("live*"))
    with pytest.raises(damo.CorruptionError, match=r"\d+\.log"):
        open_store(path, read_only=True)
    with pytest.raises(damo.CorruptionError, match=r"\d+\.log"):
        open_store(tmp_path / "other", restore=logs[0].parents[1])
    assert contents(path / "checkpoints") == damaged
    # Of the store that goes on from an older one, nothing is given up.
    with open_store(path, restore=without_a_journal(path)) as store:
        Model(store)
        rows = rows_of(store)
        with pytest.raises(damo.CorruptionError, match=r"\d+\.log"):
            store.restore(sample.checkpoint.name)
        assert_same_rows(rows_of(store), rows)


def without_a_journal(path: Path) -> Path:
    """A checkpoint in a store."""
    return next(p for p in (path / "checkpoints").iterdir() if not list((p / "rows").glob("*.log")))


def test_the_error_names_the_log_and_the_place(sample, tmp_path):
    path = store_of(sample, tmp_path / "store")
    log = logs_of(path, sample)[1]
    flip(log, 40_000)
    with pytest.raises(
        damo.CorruptionError, match=rf"{log} is damaged, .*expected a log of RocksDB.*found {log}.* at byte 32768 "
    ):
        open_store(path)


def renew_manifest(checkpoint: Path) -> None:
    """Has it name the files as they are."""
    manifest = Manifest.read(checkpoint)
    (checkpoint / "manifest.json").unlink()
    manifest.with_files(checkpoint).write(checkpoint)


def test_a_journal_that_ends_within_a_record_is_found_whatever_the_manifest_says(sample, tmp_path):
    path = store_of(sample, tmp_path / "store")
    log = logs_of(path, sample)[2]
    log.write_bytes(log.read_bytes()[:-100])
    renew_manifest(log.parents[1])
    with pytest.raises(damo.CorruptionError, match=str(log)):
        open_store(path)


def test_a_log_that_another_does_not_go_on_from_is_found_whatever_the_manifest_says(sample, tmp_path):
    path = store_of(sample, tmp_path / "store")
    logs = logs_of(path, sample)
    logs[1].unlink()
    renew_manifest(logs[0].parents[1])
    with pytest.raises(damo.CorruptionError, match=rf"{re.escape(str(logs[2]))}.* in another order"):
        open_store(path)


# ------------------------------------------------------------------ a full disk


def restore_on_a_full_disk(path: Path, name: str) -> None:
    with open_store(path) as store:
        model = Model(store)
        model.ebc.tables()[0].set([5], torch.ones(1, 8))
        rows = rows_of(store)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(damo.OutOfSpaceError, match=rf"reserve \d+ bytes in {path}"):
            store.restore(name)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not (path / "live.new").exists()
        assert_same_rows(rows_of(store), rows)
        store.restore(name)
        assert not torch.equal(store.table("a").get([5]), torch.ones(1, 8))


def test_a_restore_that_finds_the_disk_full_leaves_the_store_as_it_was(sample, tmp_path):
    run(restore_on_a_full_disk, store_of(sample, tmp_path / "store"), sample.checkpoint.name)
