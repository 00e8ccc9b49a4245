"""Promise 1: every int64 is a valid id."""

import pytest
import torch

import damo_torchrec as damo
from mixed_run import INT64_MAX, INT64_MIN, collection, look_up, update
from support import A_HANDFUL_OF_ROWS

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
