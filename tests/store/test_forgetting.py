"""`EmbeddingStore.forget`: no byte of a row is left, and of all others every one."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.exported import Exported
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.rescue.verification import verify
from forgotten import DIM, OTHERS, PERSON, Traces, collection, days, train
from raw_records import decode_key, opened
from support import kjt

DELETED = 1 << 31


def records(checkpoint: Path, scratch: Path) -> dict[tuple[int, int], bytes]:
    """All records of a checkpoint by (table number, id), as another program's RocksDB reads them."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with opened(checkpoint, scratch) as rows:
        return {decode_key(key): value for key, value in rows.items()}


def checkpoints(store: Path) -> list[Path]:
    return sorted(path for path in (store / "checkpoints").iterdir())


def is_sound(path: Path) -> bool:
    return not [str(finding) for finding in verify(path, lambda *_: None)]


def test_no_byte_is_left_and_all_other_rows_are_as_they_were(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    before = {path: records(path, tmp_path / "scratch") for path in checkpoints(store.path)}
    manifests = {path: Manifest.read(path) for path in before}
    assert len(traces.files(store.path)) > 5
    report = store.forget({"t": PERSON})
    assert traces.files(store.path) == []
    assert report.complete
    assert report.deleted == {"t": 3}
    assert {erased.path for erased in report.erased if erased.what == "checkpoint"} == before.keys() - {
        path for path, rows in before.items() if not rows
    }
    number = next(iter(manifests[checkpoints(store.path)[-1]].tables.values())).number
    for path, rows in before.items():
        after, manifest = records(path, tmp_path / "scratch"), Manifest.read(path)
        gone = {(number, i) for i in PERSON}
        step = manifest.tables["t"].iter if rows else 0
        deletions = {(number | DELETED, i): bytes([1]) + step.to_bytes(8, "little") for _, i in gone & rows.keys()}
        assert after == {**{key: value for key, value in rows.items() if key not in gone}, **deletions}
        assert (manifest.id, manifest.step, manifest.sequence) == (
            manifests[path].id,
            manifests[path].step,
            manifests[path].sequence,
        )
        assert is_sound(path)
    store.close()
    assert traces.files(store.path) == []


def test_a_store_goes_back_to_a_rewritten_checkpoint_and_trains_on(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    other = store.table("t").get(OTHERS)
    store.forget({"t": PERSON})
    assert torch.equal(store.table("t").get(OTHERS), other)
    for path in store.checkpoints()[1:]:
        store.restore(path)
        assert not store.table("t").contains(PERSON).any()
        assert sum(len(ids) for ids, _ in store.table("t").items()) == len(store.table("t"))
    store.close()
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        train(collection(store), PERSON)
        assert store.table("t").contains(PERSON).all()


def test_a_second_call_finds_nothing_to_do(tmp_path):
    store = days(tmp_path / "store", Traces())
    store.forget({"t": PERSON})
    inodes = {file: os.stat(file).st_ino for file in store.path.glob("checkpoints/**/*")}
    report = store.forget({"t": PERSON})
    assert report.complete
    assert not report.erased
    assert report.deleted == {"t": 0}
    assert {file: os.stat(file).st_ino for file in store.path.glob("checkpoints/**/*")} == inodes
    store.close()


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(tmp_path):
    store = days(tmp_path / "store", Traces())
    before = {file: file.read_bytes() for file in store.path.glob("checkpoints/**/*") if file.is_file()}
    report = store.forget({"t": PERSON}, dry_run=True)
    assert {file: file.read_bytes() for file in store.path.glob("checkpoints/**/*") if file.is_file()} == before
    assert store.table("t").contains(PERSON).all()
    done = store.forget({"t": PERSON})
    assert (report.erased, report.deleted) == (done.erased, done.deleted)
    assert report.dry_run
    store.close()


def test_checkpoints_that_have_the_rows_are_removed_but_what_the_store_goes_on_from(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    newest, exported = store.checkpoints()[-1], store.checkpoints()[2]
    Exported(Manifest.read(exported).id, str(exported)).write(store.path)
    report = store.forget({"t": PERSON}, checkpoints="remove")
    assert traces.files(store.path) == []
    assert {(e.path.name, e.done) for e in report.erased if e.done != "removed"} == {
        (newest.name, "rewritten"),
        (exported.name, "rewritten"),
        ("live", "rewritten"),
    }
    assert store.checkpoints()[-1] == newest
    assert is_sound(store.path)
    store.close()


def test_tables_have_the_names_of_now_and_are_found_by_their_number_before(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    store.close()
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        store.rename_table("t", "users")
        store.checkpoint()
        store.convert_table("users", dim=DIM + 4)
        store.checkpoint()
        report = store.forget({"users": PERSON})
        assert {Manifest.read(path).tables.keys() >= {"t"} for path in checkpoints(store.path)} == {True, False}
        with pytest.raises(KeyError, match="no table 'items'"):
            store.forget({"items": [1]})
        store.forget({"t": PERSON})  # as it was called before it was converted
        assert report.complete
        assert traces.files(store.path) == []


def test_a_crash_brings_nothing_back(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    store.forget({"t": PERSON})
    shutil.copytree(store.path, tmp_path / "crashed")
    store.close()
    (tmp_path / "crashed" / "LOCK").unlink()
    with damo.EmbeddingStore(tmp_path / "crashed", memory_budget="64MiB") as store:
        assert not store.table("t").contains(PERSON).any()
        assert traces.files(store.path) == []


def test_rows_that_crashes_left_behind_are_removed(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    shutil.copytree(store.path / "live", store.path / "live.unclean-1")
    report = store.forget({"t": PERSON})
    assert report.complete
    assert not (store.path / "live.unclean-1").exists()
    assert traces.files(store.path) == []
    store.close()


def test_what_somebody_reads_is_named_and_goes_once_it_is_closed(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    path = store.checkpoints()[-1]
    with damo.EmbeddingStore(path, memory_budget="64MiB", read_only=True) as reader:
        row = reader.table("t").get(PERSON)
        report = store.forget({"t": PERSON})
        assert [left.path for left in report.remaining if left.what == "checkpoint"] == [path]
        assert torch.equal(reader.table("t").get(PERSON), row)
    assert store.forget({"t": PERSON}).complete
    assert traces.files(store.path) == []
    store.close()


def test_an_iteration_that_has_begun_is_named(tmp_path):
    store = days(tmp_path / "store", Traces())
    store.flush()
    rows = store.table("t").items(batch_size=10)
    next(rows)
    (left,) = (left for left in store.forget({"t": PERSON}).remaining if left.what == "live rows")
    assert "iteration" in left.reason
    rows.close()
    del rows
    assert store.forget({"t": PERSON}).complete
    store.close()


def test_other_names_of_a_file_are_told_of(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces)
    shutil.copytree(store.checkpoints()[1], tmp_path / "copy", copy_function=os.link)
    report = store.forget({"t": PERSON})
    assert {left.what for left in report.remaining} == {"file"}
    assert traces.files(store.path) == []
    assert traces.files(tmp_path / "copy")
    report = store.forget({"t": PERSON}, exports=tmp_path / "copy")
    assert report.complete
    assert traces.files(tmp_path) == []
    store.close()


def test_gradients_that_wait_have_to_be_applied_before(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        ebc = collection(store)
        train(ebc, PERSON)
        store.accumulate(2)
        train(ebc, PERSON)
        with pytest.raises(ValueError, match="apply_accumulated"):
            store.forget({"t": PERSON})
        store.apply_accumulated()
        assert store.forget({"t": PERSON}).deleted == {"t": 3}


def test_a_checkpoint_under_way_and_a_prefetch_are_waited_for(tmp_path):
    traces = Traces()
    store = days(tmp_path / "store", traces, cache_bytes=100_000)
    ebc = collection(store)
    ebc.prefetch(kjt({"u": [[i] for i in PERSON]}))
    future = store.checkpoint_async()
    report = store.forget({"t": PERSON})
    assert future.done()
    assert report.complete
    assert traces.files(store.path) == []
    assert not store.table("t").contains(PERSON).any()
    train(ebc, OTHERS)
    store.close()
    assert traces.files(store.path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"checkpoints": "burn"}, "must be one of"),
        ({"exports": "none"}, "does not exist"),
        ({"deltas": ["none"]}, "does not exist"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_done(tmp_path, arguments, message):
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        train(collection(store), PERSON)
        with pytest.raises(ValueError, match=message):
            store.forget({"t": PERSON}, **arguments)
        assert store.table("t").contains(PERSON).all()
