"""Promise 4: nothing is silently replaced or lost."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import damo_torchrec as damo
from mixed_run import assert_same_rows, collection, look_up, rows_of, update
from processes import run
from support import A_HANDFUL_OF_ROWS

ROWS, DIM = 2000, 8


def weights_of(ids: torch.Tensor) -> torch.Tensor:
    return ids[:, None] + torch.arange(DIM) / 16


@pytest.fixture
def closed_store(tmp_path) -> Path:
    """Rows 0..1999 with known weights, and no row in memory."""
    path = tmp_path / "store"
    with damo.EmbeddingStore(path) as store:
        collection(store, "t", dim=DIM, initial=-1.0)
        store.table("t").set(range(ROWS), weights_of(torch.arange(ROWS)))
    return path


def rows_file(store: Path) -> Path:
    """The file that holds the rows of the newest checkpoint."""
    (file,) = store.glob("checkpoints/step_0.1/rows/*.sst")
    return file


def change_byte(file: Path, offset: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[offset] ^= 0x10
    file.write_bytes(contents)  # in place: hard links see it


# ------------------------------------------------------------------ damaged files


READS: dict[str, Callable[[damo.EmbeddingStore, damo.EmbeddingBagCollection], object]] = {
    "get": lambda store, _: store.table("t").get([3]),
    "contains": lambda store, _: store.table("t").contains([3]),
    "items": lambda store, _: list(store.table("t").items()),
    "forward in train mode": lambda _, ebc: look_up(ebc.train(), {"t": [[3]]}),
    "forward in eval mode": lambda _, ebc: look_up(ebc.eval(), {"t": [[3]]}),
    "forward and backward": lambda _, ebc: update(ebc, {"t": [[1500], [3]]}),
    "set": lambda store, _: store.table("t").set([3], torch.ones(1, DIM)),
    "delete": lambda store, _: store.table("t").delete([3]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_promise_4_a_damaged_row_raises_and_is_never_taken_for_absent(closed_store, read):
    file = rows_file(closed_store)
    change_byte(file, 100)  # in the first block, with the smallest ids
    with damo.EmbeddingStore(closed_store) as store:
        ebc = collection(store, "t", dim=DIM, initial=-1.0)
        with pytest.raises(damo.CorruptionError, match=rf"table .*{file.name}") as raised:
            read(store, ebc)
        if read is not READS["items"]:
            assert "id 3" in str(raised.value)
        table = store.table("t")
        assert torch.equal(table.get(range(1000, ROWS)), weights_of(torch.arange(1000, ROWS)))
        assert (len(table), store.step) == (ROWS, 0)


def test_promise_4_no_changed_byte_ever_changes_a_value(closed_store):
    """Wherever the byte is: all values read are right, or an error names the damage."""
    file = rows_file(closed_store)
    whole = file.read_bytes()
    errors = 0
    for offset in range(0, len(whole), max(1, len(whole) // 40)):
        change_byte(file, offset)
        try:
            with damo.EmbeddingStore(closed_store, read_only=True) as store:
                collection(store, "t", dim=DIM, initial=-1.0)
                for first in range(0, ROWS, 250):
                    ids = torch.arange(first, first + 250)
                    try:
                        assert torch.equal(store.table("t").get(ids), weights_of(ids))
                    except damo.CorruptionError:
                        errors += 1
        except damo.CorruptionError:
            errors += 1
        file.write_bytes(whole)
    assert errors > 20


def test_promise_4_a_missing_file_of_rows_is_an_error(closed_store):
    file = rows_file(closed_store)
    file.unlink()
    for read_only in (True, False):
        with pytest.raises(damo.DamoError, match=file.stem):
            damo.EmbeddingStore(closed_store, read_only=read_only)


def test_promise_4_a_shortened_file_of_rows_is_an_error(closed_store):
    file = rows_file(closed_store)
    file.write_bytes(file.read_bytes()[:-1])
    for read_only in (True, False):
        with pytest.raises(damo.CorruptionError, match=file.name):
            damo.EmbeddingStore(closed_store, read_only=read_only)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-10], lambda b: b.replace(b'"rows": 2000', b'"rows": 2001'), lambda _: b""]
)
def test_promise_4_a_damaged_manifest_is_an_error(closed_store, damage):
    manifest = closed_store / "checkpoints" / "step_0.1" / "manifest.json"
    damaged = damage(manifest.read_bytes())
    assert damaged != manifest.read_bytes()
    manifest.write_bytes(damaged)
    for read_only in (True, False):
        with pytest.raises(damo.CorruptionError, match=r"manifest\.json is damaged"):
            damo.EmbeddingStore(closed_store, read_only=read_only)


def test_promise_4_a_row_of_another_width_is_an_error(closed_store, tmp_path):
    """Rows of one store under the manifest of another: the sizes tell."""
    with damo.EmbeddingStore(tmp_path / "other") as store:
        collection(store, "t", dim=4, initial=-1.0)
        store.table("t").set([3], torch.ones(1, 4))
    newest = closed_store / "checkpoints" / "step_0.1" / "rows"
    shutil.rmtree(newest)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "step_0.1" / "rows", newest)
    with pytest.raises(damo.CorruptionError, match=r"id 3: expected a row of 40 bytes, found 24|another checkpoint"):
        read_one_row(closed_store)


def read_one_row(path: Path) -> None:
    with damo.EmbeddingStore(path, read_only=True) as store:
        collection(store, "t", dim=DIM, initial=-1.0)
        store.table("t").get([3])


# ------------------------------------------------------------------ a full disk


def fill_the_disk(path: Path) -> None:
    """Runs in a process of its own, whose files may not grow beyond a few bytes for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = damo.EmbeddingStore(path)
    ebc = collection(store, "t", dim=DIM, initial=0.0)
    update(ebc, {"t": [[i] for i in range(ROWS)]})
    store.checkpoint()
    update(ebc, {"t": [[i] for i in range(0, ROWS, 2)]})
    expected = rows_of(store)
    update(ebc, {"t": [[7]]}, gradient=0.0)
    expected_at_the_end = rows_of(store)

    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    for attempt in (lambda: store.checkpoint(path / "elsewhere"), store.close):
        with pytest.raises(damo.OutOfSpaceError, match=r"\S"):
            attempt()
        assert not store.closed
    assert torch.equal(store.table("t").get([0, 1])[:, 0], torch.tensor([-2.0, -1.0]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    left_over = [p.name for p in (path / "checkpoints").iterdir() if p.name not in ("step_0", "step_1")]
    assert left_over == []
    assert not (path / "elsewhere").exists()
    assert rows_of(store)["t"].keys() == expected["t"].keys()
    assert_same_rows(rows_of(store), expected_at_the_end)
    update(ebc, {"t": [[-5]]})
    store.close()


def test_promise_4_a_full_disk_raises_and_loses_nothing(tmp_path):
    run(fill_the_disk, tmp_path / "store")
    with damo.EmbeddingStore(tmp_path / "store") as store:
        assert store.step == 4
        collection(store, "t", dim=DIM, initial=0.0)
        table = store.table("t")
        assert len(table) == ROWS + 1
        assert table.get([0, 1, 7, 8, -5])[:, 0].tolist() == [-2.0, -1.0, -1.0, -2.0, -1.0]


def fill_the_disk_while_rows_are_evicted(path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = damo.EmbeddingStore(path, memory_budget="64MiB", options=damo.StoreOptions(cache_bytes=A_HANDFUL_OF_ROWS))
    ebc = collection(store, "t", dim=256, initial=0.0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    with pytest.raises(damo.OutOfSpaceError):
        train_on_new_ids(ebc, 200)
    assert store.step < 200
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(store.table("t")) == 500 * store.step
    for ids, weights in store.table("t").items():
        assert torch.equal(weights, torch.full((len(ids), 256), -1.0))
    store.close()


def train_on_new_ids(ebc: damo.EmbeddingBagCollection, steps: int) -> None:
    for first in range(0, 500 * steps, 500):
        update(ebc, {"t": [[i] for i in range(first, first + 500)]})


def test_promise_4_a_disk_that_fills_up_in_training_raises_and_loses_nothing(tmp_path):
    run(fill_the_disk_while_rows_are_evicted, tmp_path / "store")
    with damo.EmbeddingStore(tmp_path / "store") as store:
        collection(store, "t", dim=256, initial=0.0)
        assert sum(len(ids) for ids, _ in store.table("t").items()) == len(store.table("t")) == 500 * store.step


# ------------------------------------------------------------------ checkpoints and tables that could be mistaken


def test_promise_4_what_was_trained_after_going_back_is_not_lost(tmp_path):
    """An older checkpoint with a higher step does not come before the one that was made last."""
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", initial=0.0)
        for i in range(5):
            update(ebc, {"t": [[i]]})
            store.checkpoint()
        store.restore(2)
        update(ebc, {"t": [[100]]})
    with damo.EmbeddingStore(tmp_path / "store") as store:
        collection(store, "t", initial=0.0)
        assert store.step == 3
        assert store.table("t").contains([0, 1, 2, 3, 4, 100]).tolist() == [True, True, False, False, False, True]


def test_promise_4_a_checkpoint_after_going_back_is_that_of_the_rows(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = collection(store, "t", initial=0.0)
        for i in range(3):
            update(ebc, {"t": [[i]]})
            store.checkpoint()
        store.restore(1)
        path = store.checkpoint()
        assert damo.checkpoint_info(path).store_step == 1


def test_promise_4_a_checkpoint_with_a_name_of_its_own_is_enough_for_close(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        update(collection(store, "t", initial=0.0), {"t": [[1]]})
        store.checkpoint(store.path / "checkpoints" / "before-the-experiment")
    with damo.EmbeddingStore(tmp_path / "store") as store:
        collection(store, "t", initial=0.0)
        assert store.table("t").contains([1]).tolist() == [True]


def test_promise_4_going_to_a_checkpoint_with_more_tables_mixes_none(tmp_path):
    """Two tables that were each the store's first, in two lines of checkpoints, keep their own rows."""
    path = tmp_path / "store"
    with damo.EmbeddingStore(path) as store:
        update(collection(store, "a", initial=0.0), {"a": [[1], [2]]})
    with damo.EmbeddingStore(path, restore="step_0") as store:
        ebc = collection(store, "b", initial=0.0)
        update(ebc, {"b": [[3]]})
        store.restore("step_1" if (path / "checkpoints" / "step_1").exists() else "latest")
        assert not store.table("b").contains([1, 2, 3]).any()
        assert look_up(ebc.eval(), {"b": [[1], [2]]}).abs().sum() == 0
        collection(store, "a", initial=0.0)
        assert store.table("a").contains([1, 2, 3]).tolist() == [True, True, False]
        update(ebc.train(), {"b": [[1]]}, -5.0)
        assert store.table("a").get([1])[0, 0] == -1.0


def test_promise_4_a_checkpoint_that_cannot_be_read_leaves_the_store_as_it_was(closed_store):
    file = rows_file(closed_store)
    with damo.EmbeddingStore(closed_store) as store:
        ebc = collection(store, "t", dim=DIM, initial=-1.0)
        update(ebc, {"t": [[-1]]})
        good = store.checkpoint()
        assert good.name == "step_1"
        update(ebc, {"t": [[-2]]})
        expected = rows_of(store)
        (closed_store / "checkpoints" / "step_0.1" / "rows" / "CURRENT").unlink()
        with pytest.raises(damo.DamoError):
            store.restore("step_0.1")
        assert file.exists()
        assert_same_rows(rows_of(store), expected)
    with damo.EmbeddingStore(closed_store) as store:
        collection(store, "t", dim=DIM, initial=-1.0)
        assert_same_rows(rows_of(store), expected)
