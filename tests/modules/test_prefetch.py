"""`EmbeddingBagCollection.prefetch`."""

import threading

import pytest
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import kjt, small_store
from wrong_batches import BATCHES, WEIGHTS, batch, trained


@pytest.fixture
def ebc(memory_store):
    return collection(memory_store, "t", initial=1.0)


def rows_read(ebc: damo.EmbeddingBagCollection) -> int:
    return ebc.store.stats().rows_read


def one_id_bags(values: torch.Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=["t"], values=values, lengths=torch.ones(len(values), dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_the_forward_finds_the_rows_in_memory(tmp_path, training):
    features = {"t": [[1, 2], [], [2, -7]]}
    with small_store(tmp_path / "store") as store:
        update(collection(store, "t", initial=1.0), {"t": [[1], [2]]})
    with small_store(tmp_path / "store") as store:
        ebc = collection(store, "t", initial=1.0).train(training)
        assert ebc.prefetch(kjt(features)) is None
        assert rows_read(ebc) == 3
        unseen = 1.0 if training else 0.0
        assert look_up(ebc, features)[:, 0].tolist() == [0.0, 0.0, unseen]
        assert rows_read(ebc) == 3
        assert store.stats().tables["t"].misses == 0


def test_prefetch_takes_the_features_of_the_collection_among_others(memory_store):
    ebc = collection(memory_store, "t", "u")
    features = kjt({"other": [[1, 2]], "u": [[3]], "another": [[4]], "t": [[5, 6]]})
    ebc.prefetch(features)
    assert rows_read(ebc) == 3
    ebc(features)
    assert rows_read(ebc) == 3


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_prefetch_does_not_keep_the_batch(ebc, dtype):
    values = torch.arange(500, dtype=dtype)
    ebc.prefetch(one_id_bags(values))
    values.fill_(-1)
    ebc(one_id_bags(torch.arange(500, dtype=dtype)))
    assert rows_read(ebc) == 500


def test_prefetch_creates_no_row_and_changes_nothing_that_a_checkpoint_would_keep(tmp_path):
    with small_store(tmp_path / "store") as store:
        ebc = collection(store, "t")
        update(ebc, {"t": [[1]]})
        store.checkpoint()
        rows = rows_of(store)
        written = store.stats().rows_written
        for _ in range(3):
            ebc.prefetch(kjt({"t": [[1, 2, 3], [4]]}))
        assert rows_of(store) == rows
        assert store.step == 1
        assert len(store.table("t")) == 1
        assert store.table("t").contains([1, 2, 3, 4]).tolist() == [True, False, False, False]
        assert store.stats().rows_written == written
        checkpoints = store.checkpoints()
        assert store.checkpoint() == checkpoints[-1]
        assert store.checkpoints() == checkpoints


def test_prefetch_needs_no_graph(ebc):
    with torch.inference_mode():
        ebc.prefetch(kjt({"t": [[1]]}))
    with torch.no_grad():
        ebc.prefetch(kjt({"t": [[2]]}))
    update(ebc, {"t": [[1], [2]]})
    assert rows_read(ebc) == 2


@pytest.mark.parametrize(("make", "error", "match"), BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("training", [True, False])
def test_prefetch_refuses_the_batches_that_forward_refuses(memory_store, make, error, match, training):
    ebc = trained(memory_store).train(training)
    with pytest.raises(error, match=match):
        ebc.prefetch(make())
    assert rows_read(ebc) == 3, "rows of a batch that was refused"


@pytest.mark.parametrize(("weights", "error", "match"), WEIGHTS.values(), ids=WEIGHTS)
def test_prefetch_refuses_the_weights_that_forward_refuses(memory_store, weights, error, match):
    ebc = trained(memory_store, is_weighted=True)
    with pytest.raises(error, match=match):
        ebc.prefetch(batch(weights=weights))


@pytest.mark.parametrize("indices", [None, [[0, 2]], [[-1, 0]]])
def test_prefetch_refuses_the_inverse_indices_that_forward_refuses(memory_store, indices):
    ebc = collection(memory_store, "t")
    features = KeyedJaggedTensor(
        keys=["t"],
        values=torch.tensor([1, 2]),
        lengths=torch.tensor([1, 1]),
        stride_per_key_per_rank=[[2]],
        inverse_indices=None if indices is None else (["t"], torch.tensor(indices)),
    )
    for call in (ebc, ebc.prefetch):
        with pytest.raises(ValueError, match="inverse_indices"):
            call(features)
    assert rows_read(ebc) == 2, "prefetch has read rows of a batch that was refused"


@pytest.mark.parametrize("features", [None, torch.ones(1), {"t": [1]}, [1]])
def test_prefetch_refuses_what_is_no_batch(ebc, features):
    for call in (ebc, ebc.prefetch):
        with pytest.raises(TypeError, match="features must be a KeyedJaggedTensor"):
            call(features)


def test_prefetch_after_close_is_refused(ebc):
    ebc.prefetch(kjt({"t": [[1]]}))
    ebc.store.close()
    with pytest.raises(damo.StoreClosedError, match="is closed"):
        ebc.prefetch(kjt({"t": [[1]]}))


def test_prefetch_from_another_thread_than_the_training(ebc):
    def read_ahead() -> None:
        for step in range(100):
            ebc.prefetch(kjt({"t": [[step], [step + 1]]}))

    thread = threading.Thread(target=read_ahead)
    thread.start()
    for step in range(100):
        update(ebc, {"t": [[step], [step + 1]]})
    thread.join()
    assert ebc.store.table("t").get(range(102))[:, 0].tolist() == [0.0, *[-1.0] * 99, 0.0, 0.0]
