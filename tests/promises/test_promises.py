"""The promises of the design, one test or more for each, by its number.

Promise 2 is in promises/test_promise_2_bit_equality.py, the others that are not here in test_promise_*.py.
"""

import hashlib
from pathlib import Path

import pytest
import torch
import torchrec

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS
from training import INT64_MAX, INT64_MIN, assert_same_rows, collection, look_up, rows_of, update

# ------------------------------------------------------------------ 1. Every int64 is a valid id

EVERY_KIND_OF_ID = [
    0,
    -1,
    1,
    INT64_MIN,
    INT64_MAX,
    INT64_MIN + 1,
    INT64_MAX - 1,
    2**31,
    2**32,
    -(2**31) - 1,
    2**63 - 2**31,
]


@pytest.mark.parametrize("cache_bytes", [0, A_HANDFUL_OF_ROWS])
def test_promise_1_every_int64_is_a_valid_id(tmp_path, cache_bytes):
    """Trained, looked up, checkpointed and read again: each has a row of its own, and no other has one."""
    options = damo.StoreOptions(cache_bytes=cache_bytes)
    with damo.EmbeddingStore(tmp_path / "store", options=options) as store:
        ebc = collection(store, "t", initial=0.0)
        for position, i in enumerate(EVERY_KIND_OF_ID, start=1):
            update(ebc, {"t": [[i]]}, gradient=-float(position))
    with damo.EmbeddingStore(tmp_path / "store", options=options) as store:
        ebc = collection(store, "t", initial=0.0)
        table = store.table("t")
        expected = [float(position) for position in range(1, len(EVERY_KIND_OF_ID) + 1)]
        assert look_up(ebc.eval(), {"t": [[i] for i in EVERY_KIND_OF_ID]})[:, 0].tolist() == expected
        assert table.get(EVERY_KIND_OF_ID)[:, 0].tolist() == expected
        assert torch.cat([ids for ids, _ in table.items()]).tolist() == sorted(EVERY_KIND_OF_ID)
        assert not table.contains([2, -2, 2**31 - 1, 2**32 + 1]).any()
        table.delete([INT64_MIN, 0])
        assert len(table) == len(EVERY_KIND_OF_ID) - 2


def test_promise_1_ids_that_are_equal_in_32_bits_are_different_rows(store):
    """2^32 + 3 is not 3, with num_embeddings far below either."""
    ebc = collection(store, "t", initial=0.0)
    update(ebc, {"t": [[3]]}, -1.0)
    update(ebc, {"t": [[2**32 + 3]]}, -2.0)
    update(ebc, {"t": [[3 - 2**32]]}, -3.0)
    assert store.table("t").get([3, 2**32 + 3, 3 - 2**32])[:, 0].tolist() == [1.0, 2.0, 3.0]


# ------------------------------------------------------------------ 6. Reading never writes


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
