"""Records of deletions stay for as long as a delta can begin before them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints import lineage
from mixed_run import SmallModel, update
from support import small_store


def train(model: SmallModel, ids: range) -> None:
    update(model.ebc, {"t": [[i] for i in ids]})


def compact(store: damo.EmbeddingStore) -> None:
    """All files, as RocksDB may at any time."""
    store.session.engine.reclaim_table(store.session.catalog.open["t"].number)


def deleted_since(store: damo.EmbeddingStore, state: Path, path: Path) -> list[int]:
    return damo.Delta.read(store.export_delta(path, since=state)).tables["t"].deleted.tolist()


def test_what_no_delta_needs_goes_and_what_one_needs_stays(tmp_path):
    with small_store(tmp_path / "s") as store:
        model, table = SmallModel(store), store.table("t")
        train(model, range(300))
        table.delete(torch.arange(100))  # in no state that has the table
        train(model, range(300, 310))
        first = store.checkpoint()
        table.delete(torch.arange(100, 150))  # at the iteration of the state
        compact(store)
        assert store.stats().reclaimed_records == 0
        second = store.checkpoint()
        compact(store)
        assert store.stats().reclaimed_records == 100
        assert deleted_since(store, first, tmp_path / "delta") == list(range(100, 150))
        assert deleted_since(store, second, tmp_path / "other") == list(range(100, 150))  # of the same iteration
    with small_store(tmp_path / "s") as store:
        assert deleted_since(store, first, tmp_path / "third") == list(range(100, 150))


def test_they_stay_in_checkpoints_that_need_them(tmp_path):
    with small_store(tmp_path / "s") as store:
        model, table = SmallModel(store), store.table("t")
        train(model, range(300))
        old = store.checkpoint()
        table.delete(torch.arange(100))
        train(model, range(300, 310))
        kept = store.checkpoint(tmp_path / "kept")
        for step in range(2):
            train(model, range(310 + step, 320))
            store.checkpoint()
        compact(store)
        store.restore(kept)
        compact(store)
        assert deleted_since(store, old, tmp_path / "delta") == list(range(100))


def test_a_delta_from_a_state_before_them_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "_KEPT", 1)
    with small_store(tmp_path / "s") as store:
        model, table = SmallModel(store), store.table("t")
        train(model, range(300))
        forgotten = store.checkpoint()
        table.delete(torch.arange(100))
        for step in range(3):
            train(model, range(300 + step, 310))
            store.checkpoint()
        compact(store)
        assert store.stats().reclaimed_records == 100
        with pytest.raises(
            ValueError, match=r"is no state of this store that it remembers; those are of the steps 4\."
        ):
            store.export_delta(tmp_path / "delta", since=forgotten)


def test_what_is_set_and_deleted_for_ever_takes_no_more_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "_KEPT", 2)
    sizes = []
    with small_store(tmp_path / "s") as store:
        model, table = SmallModel(store), store.table("t")
        for step in range(24):
            ids = torch.arange(2000 * step, 2000 * (step + 1))
            table.set(ids, torch.ones(2000, 4))
            table.delete(ids)
            train(model, range(1_000_000, 1_000_010))
            store.flush()  # so that there is no journal
            store.checkpoint()
            compact(store)
            sizes.append(store.stats().disk_bytes)
        assert store.stats().reclaimed_records >= 2000 * 20
    assert max(sizes[12:]) < 1.1 * max(sizes[4:8])
    assert np.argmax(sizes) < 23


def test_a_session_that_never_ends_keeps_none_for_ever(tmp_path, monkeypatch):
    """Also since the state that it began with, which is remembered for longer than others."""
    monkeypatch.setattr(lineage, "_KEPT", 2)
    monkeypatch.setattr(lineage, "_AGED", 3)
    sizes = []
    with small_store(tmp_path / "s") as store:
        train(SmallModel(store), range(1_000_000, 1_000_010))
    with small_store(tmp_path / "s") as store:
        model, table, known = SmallModel(store), store.table("t"), store.session.catalog.lineage
        for step in range(24):
            ids = torch.arange(2000 * step, 2000 * (step + 1))
            table.set(ids, torch.ones(2000, 4))
            table.delete(ids)
            train(model, range(1_000_000, 1_000_010))
            store.flush()  # so that there is no journal
            checkpoint = store.checkpoint()
            if step == 4:
                assert deleted_since(store, 1, tmp_path / "delta") == list(range(10_000))
                known.mark(known.find(1))  # as publishing from it does
            if step == 9:
                assert known.find(1).landmark
            store.prune(keep=1)
            compact(store)
            sizes.append(store.stats().disk_bytes)
        assert store.checkpoints() == [checkpoint]
        with pytest.raises(ValueError, match="is no state of this store that it remembers"):
            store.export_delta(tmp_path / "refused", since=1)
        assert store.stats().reclaimed_records >= 2000 * 12
    assert max(sizes[18:]) < max(sizes[:12])
