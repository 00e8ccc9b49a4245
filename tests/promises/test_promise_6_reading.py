"""Promise 6: reading never writes."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchrec

import damo_torchrec as damo
from mixed_run import assert_same_rows, collection, look_up, rows_of, update
from support import A_HANDFUL_OF_ROWS


def everything_in(directory: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time of the last change, and contents of all files and directories."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [directory, *directory.rglob("*")]
    }


@pytest.fixture
def closed_store(tmp_path) -> Path:
    path = tmp_path / "closed"
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t", dim=8, optimizer=torchrec.optim.RowWiseAdagrad)
        update(ebc, {"t": [[i] for i in range(100)]})
        store.checkpoint()
        update(ebc, {"t": [[i] for i in range(50, 150)]})
    return path


@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
@pytest.mark.parametrize("which", ["store", "checkpoint", "older checkpoint"])
def test_promise_6_reading_never_writes(closed_store, which, cache_bytes):
    path = {"store": closed_store}.get(
        which, closed_store / "checkpoints" / ("step_1" if "older" in which else "step_2")
    )
    rows = 100 if "older" in which else 150
    before = everything_in(closed_store)
    with damo.EmbeddingStore(path, read_only=True, options=damo.StoreOptions(cache_bytes=cache_bytes)) as store:
        ebc = collection(store, "t", dim=8, optimizer=torchrec.optim.RowWiseAdagrad)
        table = store.table("t")
        for training in (True, False):
            output = look_up(ebc.train(training), {"t": [[i] for i in range(200)]})
            assert torch.equal(output[:rows].detach(), table.get(range(rows)))
        assert sum(len(ids) for ids, _ in table.items(batch_size=64)) == rows
        assert int(table.contains(range(200)).sum()) == rows == len(table)
        assert store.stats().tables["t"].rows == rows
        store.flush()
        assert everything_in(closed_store) == before
    assert everything_in(closed_store) == before


def test_promise_6_a_store_that_is_read_refuses_updates(closed_store):
    before = everything_in(closed_store)
    store = damo.EmbeddingStore(closed_store, read_only=True)
    ebc = collection(store, "t", dim=8, optimizer=torchrec.optim.RowWiseAdagrad)
    rows = rows_of(store)
    refused = {
        "backward": lambda: update(ebc, {"t": [[1]]}),
        "set": lambda: store.table("t").set([1], torch.ones(1, 8)),
        "delete": lambda: store.table("t").delete([1]),
        "checkpoint": store.checkpoint,
        "checkpoint elsewhere": lambda: store.checkpoint(closed_store.parent / "elsewhere"),
        "restore": store.restore,
        "save_model": lambda: damo.save_model(ebc),
    }
    for call in refused.values():
        with pytest.raises(ValueError, match="read-only"):
            call()
    assert_same_rows(rows_of(store), rows)
    store.close()
    assert everything_in(closed_store) == before
    assert not (closed_store.parent / "elsewhere").exists()


def test_promise_6_evaluation_leaves_an_open_store_as_it_is(tmp_path):
    """In a store that may be written to, too: no row appears, and there is nothing to checkpoint."""
    with damo.EmbeddingStore(tmp_path / "store", options=damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS)) as store:
        ebc = collection(store, "t")
        update(ebc, {"t": [[1], [2]]})
        store.checkpoint()
        store.flush()  # or eviction would write what only the checkpoint has
        before = everything_in(store.path)
        rows = rows_of(store)
        for i in range(50):
            look_up(ebc.eval(), {"t": [[i, -i], [i * 1000]]})
        look_up(ebc.train(), {"t": [[7]]})
        store.flush()
        assert rows_of(store) == rows
        assert everything_in(store.path) == before
    assert [p.name for p in store.checkpoints()] == ["step_0", "step_1"]


def test_promise_6_a_store_that_is_read_may_be_read_by_many_and_trained_by_one(closed_store):
    readers = [damo.EmbeddingStore(closed_store, read_only=True) for _ in range(2)]
    with damo.EmbeddingStore(closed_store) as writer:
        ebc = collection(writer, "t", dim=8, optimizer=torchrec.optim.RowWiseAdagrad)
        update(ebc, {"t": [[1000]]})
        for reader in readers:
            collection(reader, "t", dim=8, optimizer=torchrec.optim.RowWiseAdagrad)
            assert not reader.table("t").contains([1000]).any()
            assert len(reader.table("t")) == 150
    for reader in readers:
        assert int(reader.table("t").contains(range(200)).sum()) == 150
        reader.close()
