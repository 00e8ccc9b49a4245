"""A table has one optimizer, also where several collections train it."""

import pytest

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update


@pytest.fixture
def store():
    with damo.EmbeddingStore(options=damo.StoreOptions(num_threads=2)) as opened:
        yield opened


def test_collections_that_differ_in_the_optimizer_of_their_table_are_refused(store):
    one, other = collection(store, "t", lr=0.5), collection(store, "t", lr=0.25)
    with pytest.raises(ValueError, match=r"collections train the table 't' .* lr is 0.5 in one and 0.25 in the other"):
        (look_up(one, {"t": [[1]]}).sum() + look_up(other, {"t": [[1]]}).sum()).backward()
    assert rows_of(store) == {"t": {}}
    other.fused_optimizer.param_groups[0]["lr"] = 0.5
    (look_up(one, {"t": [[1]]}).sum() + look_up(other, {"t": [[1]]}).sum()).backward()
    assert store.step == 1
    other.fused_optimizer.param_groups[0]["lr"] = 0.125
    with pytest.raises(ValueError, match="differ in its optimizer"):
        update(other, {"t": [[1]]})
    del one
    update(other, {"t": [[1]]})
    assert store.step == 2


def test_a_collection_that_only_reads_may_differ(store):
    one, other = collection(store, "t", lr=0.5), collection(store, "t", lr=0.25)
    update(one, {"t": [[1]]})
    look_up(other, {"t": [[1]]})
    look_up(other.eval(), {"t": [[1]]})
    update(one, {"t": [[1]]})
    assert store.step == 2
