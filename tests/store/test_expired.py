"""Which ids had a row in a checkpoint and have none now, against sets."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.store import expired as implementation
from support import A_HANDFUL_OF_ROWS, config, kjt, small_store

LIFE = damo.TableOptions(
    admit=damo.Admit(sightings=2, within_steps=15),
    expire=[damo.Idle(steps=12), damo.Idle(steps=4, below_count=2)],
    max_rows=120,
    credit=2,
)


def collection(store, dim=4, **options):
    options = options or {"table_options": {"t": LIFE}}
    return damo.EmbeddingBagCollection([config("t", dim)], torch.optim.Adagrad, {"lr": 0.1}, store=store, **options)


def train(ebc, ids):
    ebc(kjt({"t": [list(ids)]})).values().sum().backward()


def rows(table) -> set[int]:
    return set(table.to_torch()[0].tolist())


def gone(table, since) -> list[int]:
    """What it yields, which are ascending and never empty tensors of int64."""
    chunks = list(table.expired(since=since))
    assert all(chunk.dtype == torch.int64 and len(chunk) > 0 for chunk in chunks)
    ids = [i for chunk in chunks for i in chunk.tolist()]
    assert ids == sorted(set(ids))
    return ids


@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
@pytest.mark.parametrize("row_dtype", [torch.float32, torch.float16])
def test_it_lists_what_any_rule_or_call_removed_since_any_checkpoint(tmp_path, monkeypatch, cache_bytes, row_dtype):
    monkeypatch.setattr(implementation, "_BATCH_BYTES", 100)  # six rows at a time
    chance = random.Random(3)
    life = {"table_options": {"t": damo.TableOptions(**{**LIFE.__dict__, "row_dtype": row_dtype})}}
    with small_store(tmp_path / "s", cache_bytes=cache_bytes, keep_checkpoints=None) as store:
        ebc, table = collection(store, **life), store.table("t")
        states: dict[Path, set[int]] = {}
        listed = 0
        for step in range(60):
            train(ebc, [chance.randrange(4 * step, 4 * step + 150) for _ in range(80)])
            if step % 7 == 3:
                table.delete([chance.randrange(4 * step, 4 * step + 150) for _ in range(10)])
                table.set([-step, 2**62 + step], torch.ones(2, 4))
            if step % 10 == 5:
                if step % 20 == 5:
                    store.flush()  # this one has no journal
                states[store.checkpoint()] = rows(table)
            for checkpoint, before in states.items():
                if step % 5 == 0:
                    found = gone(table, checkpoint)
                    assert found == sorted(before - rows(table))
                    listed += len(found)
        assert listed > 1000
        assert gone(table, "latest") == gone(table, store.checkpoints()[-1].name)
        first = next(iter(states))
        assert gone(table, int(first.name.removeprefix("step_"))) == gone(table, first)


def test_nothing_is_gone_where_nothing_was_removed(tmp_path):
    with small_store(tmp_path / "s") as store:
        ebc, table = collection(store, table_options={}), store.table("t")
        empty = store.checkpoint(tmp_path / "empty")
        assert gone(table, empty) == []
        train(ebc, range(1000))
        assert gone(table, empty) == []
        full = store.checkpoint()
        assert gone(table, full) == []
        table.delete(range(1000))
        assert gone(table, full) == list(range(1000))
        train(ebc, range(0, 1000, 2))  # made anew
        assert gone(table, full) == list(range(1, 1000, 2))


@pytest.mark.parametrize(
    ("then", "now"), [(range(5000), range(0)), (range(0, 9, 8), range(1, 5000)), (range(0, 5000, 7), range(0, 5000, 3))]
)
def test_tables_of_very_different_sizes(tmp_path, monkeypatch, then, now):
    monkeypatch.setattr(implementation, "_BATCH_BYTES", 400)
    with small_store(tmp_path / "s") as store:
        ebc, table = collection(store, table_options={}), store.table("t")
        train(ebc, then)
        checkpoint = store.checkpoint()
        table.delete(then)
        train(ebc, now)
        assert gone(table, checkpoint) == sorted({*then} - {*now})


def test_ids_that_were_only_seen_had_no_row(tmp_path):
    with small_store(tmp_path / "s") as store:
        ebc, table = collection(store), store.table("t")
        train(ebc, [1, 2, 2])
        checkpoint = store.checkpoint()
        table.delete([1, 2])
        train(ebc, [2])  # seen once again: no row
        assert gone(table, checkpoint) == [2]


def test_rows_are_those_of_the_beginning_and_the_checkpoint_stays_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "_BATCH_BYTES", 1600)  # a hundred rows at a time
    with small_store(tmp_path / "s") as store:
        ebc, table = collection(store, table_options={}), store.table("t")
        train(ebc, range(1000))
        checkpoint = store.checkpoint()
        table.delete(range(0, 1000, 2))
        store.checkpoint()
        found = table.expired(since=checkpoint)
        ids = next(found).tolist()
        table.delete(range(1000))
        train(ebc, range(0, 1000, 4))
        store.prune(keep=1)
        assert checkpoint.exists()
        assert [*ids, *(i for some in found for i in some.tolist())] == list(range(0, 1000, 2))
        store.prune(keep=1)
        assert not checkpoint.exists()
        with pytest.raises(ValueError, match="has no checkpoint"):
            table.expired(since=checkpoint)


def test_another_thread_may_train_and_save_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "_BATCH_BYTES", 400)
    with small_store(tmp_path / "s", cache_bytes=A_HANDFUL_OF_ROWS) as store:
        ebc, table = collection(store, table_options={}), store.table("t")
        train(ebc, range(2000))
        checkpoint = store.checkpoint()
        table.delete(range(0, 2000, 2))
        done = threading.Event()
        steps = 0

        def trains() -> None:
            nonlocal steps
            while not done.is_set():
                train(ebc, range(steps, steps + 300))
                store.checkpoint_async()
                steps += 1

        thread = threading.Thread(target=trains)
        thread.start()
        try:
            for _ in range(3):
                found = gone(table, checkpoint)
                assert {*found} <= {*range(0, 2000, 2)}
                assert {*found} >= {*range(1000, 2000, 2)} - {*range(steps + 301)}
        finally:
            done.set()
            thread.join()
        assert steps > 0


def test_tables_that_changed_as_a_whole(tmp_path):
    with small_store(tmp_path / "s", keep_checkpoints=None) as store:
        ebc = collection(store, table_options={})
        none = store.checkpoint(tmp_path / "none")
        train(ebc, range(10))
        made = store.checkpoint()
        del ebc
        store.convert_table("t", optimizer=torch.optim.Adam, dim=8, row_dtype="bfloat16")
        store.table("t").delete([3])
        assert gone(store.table("t"), made) == [3]
        assert gone(store.table("t"), none) == []
        converted = store.checkpoint()
        store.rename_table("t", "u")
        with pytest.raises(ValueError, match=r"no table 'u', whose rows could have gone since, but \['t'\]"):
            store.table("u").expired(since=made)
        store.rename_table("u", "t")
        store.drop_table("t")
        ebc = collection(store, table_options={})
        train(ebc, [1, 2])
        assert gone(store.table("t"), converted) == [0, *range(4, 10)]
        table = store.table("t")
        store.restore(made)
        assert gone(table, converted) == []


def test_a_store_that_is_only_read(tmp_path):
    with small_store(tmp_path / "s", keep_checkpoints=None) as store:
        ebc = collection(store, table_options={})
        train(ebc, range(10))
        old = store.checkpoint()
        store.table("t").delete([2, 7])
    with damo.EmbeddingStore(tmp_path / "s", memory_budget="64MiB", read_only=True) as store:
        assert gone(store.table("t"), old.name) == [2, 7]
    with damo.EmbeddingStore(old, memory_budget="64MiB", read_only=True) as store:
        assert gone(store.table("t"), old) == []


def test_a_checkpoint_elsewhere_and_rows_in_memory(tmp_path):
    with small_store(tmp_path / "s") as store:
        train(collection(store, table_options={}), range(10))
        elsewhere = store.checkpoint(tmp_path / "elsewhere")
    with small_store() as store:
        ebc = collection(store, table_options={})
        train(ebc, range(5))
        assert gone(store.table("t"), elsewhere) == list(range(5, 10))


def test_rows_that_are_too_large_for_the_least_budget(tmp_path):
    with damo.EmbeddingStore(tmp_path / "s", memory_budget="2GiB") as store:
        ebc, table = collection(store, dim=20_000, table_options={}), store.table("t")
        train(ebc, [1, 2, 3])
        checkpoint = store.checkpoint()
        table.delete([2])
        assert gone(table, checkpoint) == [2]


@pytest.mark.parametrize("since", [None, True, 1.0, np.int64(1)])
def test_what_names_no_checkpoint_is_refused(tmp_path, since):
    with small_store(tmp_path / "s") as store:
        collection(store)
        with pytest.raises(TypeError, match="since must be a checkpoint's step, name or path"):
            store.table("t").expired(since=since)


def test_errors_come_at_the_call(tmp_path):
    with small_store(tmp_path / "s") as store:
        ebc = collection(store, table_options={})
        with pytest.raises(ValueError, match="has no checkpoint 7"):
            store.table("t").expired(since=7)
        train(ebc, range(5))
        path = store.checkpoint()
        table = store.table("t")
        late = table.expired(since=path)
        (path / "manifest.json").write_text("{")
        with pytest.raises(damo.CorruptionError):
            table.expired(since=path)
        with pytest.raises(damo.CorruptionError):
            next(late)
    with pytest.raises(damo.StoreClosedError):
        table.expired(since=path)


def test_a_store_that_is_closed_in_the_middle_ends_the_iteration(tmp_path, monkeypatch):
    monkeypatch.setattr(implementation, "_BATCH_BYTES", 160)
    store = small_store(tmp_path / "s")
    ebc = collection(store, table_options={})
    train(ebc, range(100))
    path = store.checkpoint()
    store.table("t").delete(range(100))
    found = store.table("t").expired(since=path)
    next(found)
    store.close()
    with pytest.raises(damo.StoreClosedError, match="is closed"):
        list(found)
