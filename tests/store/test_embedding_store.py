"""`EmbeddingStore`: closing, temporary stores, figures; the rest is in the files beside this one."""

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import assert_same_rows, collection, look_up, rows_of, update
from support import A_HANDFUL_OF_ROWS, kjt


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("damo_torchrec") and r.levelno > logging.INFO]


# ------------------------------------------------------------------ closing


def test_close_makes_a_checkpoint_first_and_is_idempotent(path):
    store = damo.EmbeddingStore(path)
    update(collection(store, "t", initial=0.0), {"t": [[1]]})
    assert not store.closed
    for _ in range(3):
        store.close()
        assert store.closed
    assert sorted(p.name for p in path.iterdir()) == ["LOCK", "checkpoints", "origin.json"]
    with damo.EmbeddingStore(path) as store:
        assert (store.step, names(store.checkpoints())) == (1, ["step_0", "step_1"])
        collection(store, "t", initial=0.0)
        assert store.table("t").get([1])[0, 0] == -1.0


CHANGES = {
    "an update": lambda store, ebc: update(ebc, {"t": [[1]]}),
    "an update of no row": lambda store, ebc: update(ebc, {"t": [[]]}),
    "set": lambda store, ebc: store.table("t").set([1], torch.ones(1, 4)),
    "delete": lambda store, ebc: store.table("t").delete([0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_closed_with_a_checkpoint(path, change):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t")
        store.table("t").set([0], torch.ones(1, 4))
        store.checkpoint()
        change(store, ebc)
        rows, step, before = rows_of(store), store.step, len(store.checkpoints())
    with damo.EmbeddingStore(path) as store:
        collection(store, "t")
        assert_same_rows(rows_of(store), rows)
        assert store.step == step
        assert len(store.checkpoints()) == before + 1


def test_nothing_changed_is_no_checkpoint(path):
    with damo.EmbeddingStore(path) as store:
        update(collection(store, "t"), {"t": [[1]]})
    for _ in range(3):
        with damo.EmbeddingStore(path) as store:
            look_up(collection(store, "t"), {"t": [[1], [2]]})
            store.table("t").get([3])
            store.flush()
            assert store.checkpoint() == path / "checkpoints" / "step_1"
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["step_0", "step_1"]


def test_a_closed_store_says_so(path):
    store = damo.EmbeddingStore(path)
    ebc = collection(store, "t")
    table = store.table("t")
    output = look_up(ebc, {"t": [[1]]})
    store.close()
    calls = [
        store.checkpoint,
        store.flush,
        store.stats,
        store.restore,
        lambda: store.step,
        lambda: look_up(ebc, {"t": [[1]]}),
        lambda: output.sum().backward(),
        lambda: collection(store, "u"),
        lambda: table.get([1]),
        lambda: table.set([1], torch.ones(1, 4)),
        lambda: table.delete([1]),
        lambda: next(table.items()),
        lambda: len(table),
        lambda: table.iter,
        lambda: damo.save_model(ebc),
    ]
    for call in calls:
        with pytest.raises(damo.StoreClosedError, match=rf"the store {path} is closed"):
            call()
    assert "closed" in repr(store)


def test_leaving_a_with_block_by_an_error_closes_too(path):
    def train_and_fail() -> None:
        with damo.EmbeddingStore(path) as store:
            update(collection(store, "t"), {"t": [[1]]})
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train_and_fail()
    with damo.EmbeddingStore(path, restore=None) as store:
        assert store.step == 1


def test_closing_drops_gradients_that_wait_and_says_so(path, caplog):
    with damo.EmbeddingStore(path) as store:
        store.accumulate(2)
        update(collection(store, "t"), {"t": [[1]]})
    assert any("gradients wait for accumulate(2): they are dropped" in m for m in messages(caplog))
    with damo.EmbeddingStore(path) as store:
        assert store.step == 0


def test_an_iteration_that_is_not_over_does_not_keep_the_store_from_closing(path):
    """Nor from being opened again, or restored, while it lives."""
    store = damo.EmbeddingStore(path)
    collection(store, "t")
    store.table("t").set(range(10), torch.ones(10, 4))
    iteration = store.table("t").items(batch_size=1)
    next(iteration)
    store.restore(store.checkpoint())
    assert len(store.table("t")) == 10
    iteration = store.table("t").items(batch_size=1)
    next(iteration)
    store.close()
    with damo.EmbeddingStore(path) as store:
        collection(store, "t")
        assert len(list(store.table("t").items(batch_size=1))) == 10
    del iteration


# ------------------------------------------------------------------ temporary stores


def test_a_store_without_a_path_is_temporary(tmp_path, caplog):
    with damo.EmbeddingStore() as store:
        assert store.path.parent == tmp_path
        update(collection(store, "t"), {"t": [[1]]})
        assert store.checkpoint().is_dir()
    assert not store.path.exists()
    with pytest.raises(ValueError, match="needs the path"):
        damo.EmbeddingStore(read_only=True)
    with pytest.raises(ValueError, match="at least"):
        damo.EmbeddingStore(memory_budget=1)
    assert not list(tmp_path.iterdir())


def test_a_store_in_memory_leaves_nothing_on_disk(tmp_path):
    options = damo.StoreOptions(backend="memory")
    with pytest.raises(ValueError, match="takes no path"):
        damo.EmbeddingStore(tmp_path / "store", options=options)
    with damo.EmbeddingStore(options=options) as store:
        ebc = collection(store, "t")
        update(ebc, {"t": [[1]]})
        for call in (store.checkpoint, lambda: damo.save_model(ebc)):
            with pytest.raises(ValueError, match='backend="memory" has no checkpoints'):
                call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "ext4"])
def test_a_temporary_store_on_a_file_system_in_memory_warns(tmp_path, monkeypatch, caplog, kind):
    mounts = f"rootfs / rootfs rw 0 0\n/dev/x {tmp_path} {kind} rw 0 0\n/dev/y {tmp_path}x ext4 rw 0 0\n"
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a: mounts if str(self) == "/proc/self/mounts" else read_text(self, *a)
    )
    damo.EmbeddingStore().close()
    assert any("is on tmpfs" in m for m in messages(caplog)) == (kind != "ext4")


# ------------------------------------------------------------------ figures


def test_stats_tell_rows_hits_misses_and_bytes(path):
    with damo.EmbeddingStore(path, memory_budget="64MiB") as store:
        ebc = collection(store, "t", "u", dim=16)
        assert store.stats().tables["t"] == damo.TableStats(0, 0)
        assert store.stats().tables["t"].hit_rate == 0.0
        update(ebc, {"t": [[i] for i in range(100)], "u": [[] for _ in range(100)]})
        look_up(ebc, {"t": [[1, 1], [200]], "u": [[], []]})
        stats = store.stats()
        counted = damo.TableStats(100, 101, training=damo.LookupStats(hits=2, misses=101))
        assert stats.tables == {"t": counted, "u": damo.TableStats(0, 0)}
        assert stats.tables["t"].hit_rate == 2 / 103
        assert stats.memory_budget == 64 * 2**20
        assert 0 < stats.memory_bytes <= stats.memory_budget
        assert (stats.disk_bytes, stats.skipped_backwards) == (0, 0)
        store.checkpoint()
        assert store.stats().disk_bytes >= 100 * 16 * 4
        assert store.stats().bytes_written >= store.stats().disk_bytes


@pytest.mark.parametrize("prefetch", [False, True])
def test_hits_of_a_cold_store_are_rows_that_no_prefetch_had_to_bring(path, prefetch):
    def batches():
        return [(kjt({"t": [[i] for i in range(n, n + 200)]}),) for n in range(0, 1000, 200)]

    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t", dim=16)
        for (batch,) in batches():
            ebc(batch).values().sum().backward()
    with damo.EmbeddingStore(path) as store:
        store.restore()
        ebc = collection(store, "t", dim=16)
        for (batch,) in damo.PrefetchIterator(batches(), ebc) if prefetch else batches():
            ebc(batch).values().sum().backward()
        stats = store.stats().tables["t"]
        assert stats.hit_rate == stats.hits == 0
        assert stats.training.ids == 1000
        assert (stats.prefetched > 0) == prefetch
        look_up(ebc, {"t": [[1], [2]]})
        assert store.stats().tables["t"].hits == 2


def test_training_evaluation_and_reads_by_id_are_counted_apart_and_from_a_reset_on(path):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t", dim=16)
        update(ebc, {"t": [[1], [2], [3]]})
        ebc.eval()
        look_up(ebc, {"t": [[1], [9]]})
        store.table("t").get([1, 1, 2, 77])
        store.table("t").contains([3])
        stats = store.stats().tables["t"]
        assert stats.training == damo.LookupStats(hits=0, misses=3)
        assert stats.evaluation == damo.LookupStats(hits=1, misses=1)
        assert stats.by_id == damo.LookupStats(hits=3, misses=1)
        assert (stats.hits, stats.misses, stats.hit_rate) == (0, 3, 0.0)
        store.reset_stats()
        assert store.stats().tables["t"] == damo.TableStats(3, stats.cached_rows)
        ebc.train()
        look_up(ebc, {"t": [[1], [2]]})
        assert store.stats().tables["t"].hit_rate == 1.0


def test_stats_of_a_store_that_evicts_count_misses(path):
    with damo.EmbeddingStore(path, options=damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS)) as store:
        ebc = collection(store, "t", dim=16)
        ids = {"t": [[i] for i in range(500)]}
        update(ebc, ids)
        for _ in range(5):
            look_up(ebc, ids)
        stats = store.stats().tables["t"]
        assert stats.rows == 500
        assert stats.cached_rows < 500
        assert stats.hits + stats.misses == 6 * 500
        assert stats.misses > 500


def test_a_flush_changes_no_row_and_makes_no_checkpoint(path):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t")
        update(ebc, {"t": [[1], [2]]})
        rows = rows_of(store)
        store.flush()
        assert_same_rows(rows_of(store), rows)
        assert names(store.checkpoints()) == ["step_0"]


def test_a_store_is_not_copied(path):
    with damo.EmbeddingStore(path) as store:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="use save_model and load_model"):
                attempt(store)
