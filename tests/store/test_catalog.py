"""One name, one table: its schema, and the number by which its rows are known on disk."""

import json
import logging
from pathlib import Path

import pytest
import torch
import torchrec

import damo_torchrec as damo
from mixed_run import collection, look_up, rows_of, update
from support import config


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "store"


def test_opening_a_table_again_with_its_schema_attaches_to_the_same_rows(store):
    first = collection(store, "t", initial=1.0)
    update(first, {"t": [[1]]})
    second = collection(store, "t", initial=1.0, lr=0.5)  # a learning rate is no part of the schema
    assert torch.equal(look_up(second.eval(), {"t": [[1]]}), store.table("t").get([1]))
    update(first, {"t": [[1]]})
    assert look_up(second, {"t": [[1]]})[0, 0] == -1.0
    assert second.tables() == first.tables()


OTHER_SCHEMAS = {
    "dim": {"dim": 8},
    "optimizer": {"optimizer": torch.optim.Adam},
}


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(("what", "change"), OTHER_SCHEMAS.items(), ids=OTHER_SCHEMAS)
def test_opening_a_table_with_another_schema_is_refused(tmp_path, what, change, reopened):
    store = damo.EmbeddingStore(tmp_path / "store")
    ebc = collection(store, "t", initial=1.0)
    update(ebc, {"t": [[1]]})
    before = rows_of(store)
    if reopened:
        store.close()
        store = damo.EmbeddingStore(tmp_path / "store")
    with store:
        with pytest.raises(damo.SchemaMismatchError, match=rf"'t'.* has {what} .*, got"):
            collection(store, "t", **{"initial": 1.0, **change})
        collection(store, "t", initial=1.0)
        assert rows_of(store) == before


@pytest.mark.parametrize("reopened", [False, True])
def test_a_table_keeps_the_initial_values_that_it_began_with_and_says_so(tmp_path, caplog, reopened):
    def grown(store, n):
        tables = [config("t", init_fn=torch.nn.init.xavier_uniform_, num_embeddings=n)]
        return damo.EmbeddingBagCollection(tables, torchrec.optim.SGD, {"lr": 1.0}, store=store)

    caplog.set_level(logging.INFO, "damo_torchrec")
    store = damo.EmbeddingStore(tmp_path / "store", seed=3)
    first = look_up(grown(store, 100), {"t": [[7]]})
    update(grown(store, 100), {"t": [[1]]})
    assert "keeps the initial values" not in caplog.text
    if reopened:
        store.close()
        store = damo.EmbeddingStore(tmp_path / "store")
    with store:
        assert torch.equal(look_up(grown(store, 1000), {"t": [[7]]}), first)
        assert "'t' of the store" in caplog.text
        assert "'num_embeddings': 100}, and ignores" in caplog.text
        update(grown(store, 1000), {"t": [[2]]})
        store.restore(store.checkpoint())
        assert torch.equal(look_up(grown(store, 1000), {"t": [[7]]}), first)
    assert damo.checkpoint_info(tmp_path / "store").rows == {"t": 2}


def test_a_collection_of_which_one_table_is_refused_opens_none(store):
    collection(store, "t", dim=4)
    with pytest.raises(damo.SchemaMismatchError):
        damo.EmbeddingBagCollection([config("new", 8), config("t", 8)], torchrec.optim.SGD, {"lr": 1.0}, store=store)
    assert list(store.tables()) == ["t"]


def test_a_stored_table_is_read_and_set_without_the_model_that_trained_it(path):
    with damo.EmbeddingStore(path, seed=5) as store:
        update(collection(store, "t", "u", optimizer=torch.optim.Adam), {"t": [[1], [7]], "u": [[1], [1]]})
        expected = store.table("t").get([1, 7])
    with damo.EmbeddingStore(path, read_only=True) as store:
        assert sorted(store.tables()) == ["t", "u"]
        assert torch.equal(store.table("t").get([1, 7]), expected)
        assert len(store.table("u")) == 1
    with damo.EmbeddingStore(path) as store:
        store.table("t").set([9], torch.ones(1, 4))
        store.table("u").delete([1])
    with damo.EmbeddingStore(path) as store:
        assert torch.equal(store.table("t").get([9]), torch.ones(1, 4))
        assert store.table("u").to_torch()[0].tolist() == []
        assert damo.checkpoint_info(path).rows == {"t": 3, "u": 0}


def test_collections_over_a_read_only_store_need_not_name_the_optimizer(path):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "t", optimizer=torch.optim.Adam)
        update(ebc, {"t": [[1], [7]]})
        expected = look_up(ebc.eval(), {"t": [[1, 7]]})
    with damo.EmbeddingStore(path, read_only=True) as store:
        ebc = damo.EmbeddingBagCollection([config("t", 4)], store=store)
        assert torch.equal(look_up(ebc.eval(), {"t": [[1, 7]]}), expected)
        with pytest.raises(damo.SchemaMismatchError, match="has dim 4, got 8"):
            damo.EmbeddingBagCollection([config("t", 8)], store=store)


def test_a_collection_trains_a_table_that_was_read_before_as_if_it_had_not_been(tmp_path):
    rows = []
    for read_before in (False, True):
        path = tmp_path / str(read_before)
        for _ in range(2):
            with damo.EmbeddingStore(path, seed=5) as store:
                if read_before:
                    _ = [table.get([1]) for table in store.tables().values()]
                ebc = collection(store, "t", optimizer=torch.optim.Adam, lr=0.1, unseen="initial")
                update(ebc, {"t": [[1], [7]]})
                assert torch.equal(store.table("t").get([99]), look_up(ebc.eval(), {"t": [[99]]}))
                rows.append(rows_of(store))
    assert rows[:2] == rows[2:]


def test_table_numbers_are_never_used_again(path):
    numbers = {}
    for session in (["a", "b"], ["c"], ["b", "d"], ["e", "a"]):
        with damo.EmbeddingStore(path) as store:
            ebc = collection(store, *session)
            update(ebc, {name: [[1]] for name in session})
    manifest = json.loads((damo.checkpoint_info(path).path / "manifest.json").read_text())["manifest"]
    numbers = {name: table["number"] for name, table in manifest["tables"].items()}
    assert numbers == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert manifest["next_table_number"] == 6


def test_going_back_to_where_a_table_was_not_leaves_it_to_collections_that_have_it_open(path):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "a", initial=0.0)
        update(ebc, {"a": [[1]]})
        update(collection(store, "b", initial=0.0), {"b": [[2]]})
        handle = store.table("b")
        store.restore(0)
        assert {name: len(table) for name, table in store.tables().items()} == {"a": 0}
        with pytest.raises(damo.DamoError, match="no table 'b' any more"):
            handle.get([2])


def test_a_table_opened_after_going_back_gets_a_number_of_its_own(path):
    with damo.EmbeddingStore(path) as store:
        ebc = collection(store, "a", initial=0.0)
        update(ebc, {"a": [[1]]})
        store.restore(0)
        update(collection(store, "b", initial=0.0), {"b": [[2]]})
        assert not store.table("a").contains([1, 2]).any()
        assert store.table("b").contains([1, 2]).tolist() == [False, True]
