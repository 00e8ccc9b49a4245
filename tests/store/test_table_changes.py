"""`EmbeddingStore.drop_table` and `rename_table`: tables that no collection opens any more."""

import gc
import json
import logging

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from processes import kill_this_process, run_until_killed
from raw_records import decode_key, opened
from support import config, kjt, payloads, small_store


@pytest.fixture
def store(each_store):
    return each_store


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def collection(store, *names, optimizer=torch.optim.Adagrad, dim=4):
    return damo.EmbeddingBagCollection([config(name, dim) for name in names], optimizer, {"lr": 0.1}, store=store)


def train(store, *names, ids=(1, 2, 3), steps=1):
    """Steps of a collection that is gone when it returns."""
    ebc = collection(store, *names)
    for _ in range(steps):
        ebc(kjt({name: [list(ids)] for name in names})).values().sum().backward()


def numbers_on_disk(checkpoint, scratch):
    """Of the tables with a row or a deletion record, as another program's RocksDB reads them."""
    scratch.mkdir()
    with opened(checkpoint, scratch) as rows:
        return {decode_key(key)[0] & ~(1 << 31) for key, _ in rows.items()}


# ---- drop


def test_a_dropped_table_is_gone_and_the_others_are_as_they_were(store):
    train(store, "a", "old", steps=2)
    before = payloads(store, "a")
    store.drop_table("old")
    assert list(store.tables()) == ["a"]
    assert payloads(store, "a") == before
    with pytest.raises(KeyError, match=r"no table 'old'; its tables are \['a'\]"):
        store.table("old")
    train(store, "a", "old", ids=[2])
    assert store.table("old").iter == 1, "a table of the same name begins anew"
    assert store.table("old").contains([1, 2, 3]).tolist() == [False, True, False]


def test_the_step_is_that_of_the_tables_that_are_left(store):
    train(store, "a", steps=1)
    train(store, "old", steps=3)
    assert store.step == 3
    store.drop_table("old")
    assert store.step == 1


def test_rows_on_disk_and_deletion_records_go_and_number_and_disk_stay_free(path, tmp_path):
    with small_store(path) as store:
        train(store, "a", "old", ids=range(2000))
        store.flush()
        store.table("old").delete(range(1000))
        train(store, "old", ids=range(100))  # into the cache, and with that into a journal
        first = store.checkpoint(tmp_path / "before")
        store.drop_table("old")
        second = store.checkpoint()
        train(store, "new")
        third = store.checkpoint(tmp_path / "third")
    assert numbers_on_disk(first, tmp_path / "1") == {1, 2}
    assert numbers_on_disk(second, tmp_path / "2") == {1}
    assert list(Manifest.read(second).tables) == ["a"]
    assert Manifest.read(third).tables["new"].number == 3, "a number is never given twice"
    with damo.EmbeddingStore(tmp_path / "of another", restore=second) as other:  # which counts rows by table
        assert len(other.table("a")) == 2000


def test_the_bytes_of_its_rows_leave_the_files_at_once(path, tmp_path):
    with small_store(path) as store:
        train(store, "a")
        table = collection(store, "old").tables()[0]
        table.set(range(1000), torch.full((1000, 4), 1234.5))
        store.flush()
        del table
        gc.collect()
        store.drop_table("old")
        checkpoint = store.checkpoint(tmp_path / "after")
    needle = torch.full((4,), 1234.5).numpy().tobytes()
    assert not [file for file in checkpoint.rglob("*") if file.is_file() and needle in file.read_bytes()]


def test_a_stored_table_that_nobody_has_opened_is_dropped(path):
    with small_store(path) as store:
        train(store, "a", "old")
    with small_store(path) as store:
        store.drop_table("old")
    with small_store(path) as store:
        assert list(store.tables()) == ["a"]


def test_a_table_of_the_journal_is_dropped(path, tmp_path):
    with small_store(path) as store:
        train(store, "a", "old")
        journal = store.checkpoint(tmp_path / "journal")
    with damo.EmbeddingStore(tmp_path / "other", restore=journal) as store:
        store.drop_table("old")
        assert len(store.table("a")) == 3
        checkpoint = store.checkpoint()
    assert numbers_on_disk(checkpoint, tmp_path / "scratch") == {1}


def test_older_checkpoints_bring_it_back(path):
    with small_store(path) as store:
        train(store, "a", "old")
        before = store.checkpoint()
        rows = payloads(store, "old")
        held = store.table("old")
        store.drop_table("old")
        after = store.checkpoint()
        store.restore(before)
        assert payloads(store, "old") == rows
        with pytest.raises(damo.DamoError, match="dropped"):
            held.get([1])
        store.restore(after)
        assert list(store.tables()) == ["a"]


def drop_and_die(path):
    store = small_store(path)
    store.drop_table("old")
    kill_this_process()


def rename_and_die(path):
    store = small_store(path)
    store.rename_table("old", "new")
    kill_this_process()


@pytest.mark.parametrize("change", [drop_and_die, rename_and_die])
def test_a_crash_before_the_next_checkpoint_undoes_it(path, change):
    with small_store(path) as store:
        train(store, "a", "old", ids=range(500))
        rows = payloads(store, "old")
    run_until_killed(change, path)
    with small_store(path) as store:
        assert list(store.tables()) == ["a", "old"]
        assert payloads(store, "old") == rows


def test_a_handle_of_a_dropped_table_says_so(store):
    train(store, "old")
    table = store.table("old")
    store.drop_table("old")
    for call in (
        lambda: table.get([1]),
        lambda: table.set([1], torch.zeros(1, 4)),
        lambda: table.delete([1]),
        lambda: table.contains([1]),
        lambda: next(table.items()),
        lambda: len(table),
        lambda: table.iter,
    ):
        with pytest.raises(damo.DamoError, match=r"has no table 'old' any more: it was dropped"):
            call()


def test_an_iteration_under_way_goes_on_with_the_rows_that_it_began_with(store):
    train(store, "old", ids=range(300))
    rows = store.table("old").items(batch_size=100)
    seen = next(rows)[0].tolist()
    store.drop_table("old")
    for ids, _ in rows:
        seen += ids.tolist()
    assert seen == list(range(300))


def test_an_output_keeps_its_collection(store):
    out = collection(store, "a", "old")(kjt({"a": [[1]], "old": [[2]]})).values().sum()
    with pytest.raises(ValueError, match="while a collection has it open"):
        store.drop_table("old")
    out.backward()
    assert store.table("old").contains([2]).tolist() == [True]


@pytest.mark.parametrize("what", ["drop", "rename"])
def test_while_a_collection_has_it_open_it_is_refused(store, what):
    model = torch.nn.ModuleDict({"ebc": collection(store, "a", "old")})
    model.circle = model  # which garbage collection alone undoes
    call = {"drop": lambda: store.drop_table("old"), "rename": lambda: store.rename_table("old", "new")}[what]
    with pytest.raises(ValueError, match=rf"cannot {what} table 'old' of the store .* while a collection has it open"):
        call()
    assert list(store.tables()) == ["a", "old"]
    del model
    call()
    assert "old" not in store.tables()


def test_while_gradients_wait_it_is_refused(store):
    store.accumulate(2)
    ebc = collection(store, "a")
    train(store, "old")
    ebc(kjt({"a": [[1]]})).values().sum().backward()
    store.apply_accumulated()
    ebc(kjt({"a": [[1]]})).values().sum().backward()
    with pytest.raises(ValueError, match="cannot drop a table in the middle of accumulate"):
        store.drop_table("old")


def test_wrong_calls(path):
    with small_store(path) as store:
        train(store, "a", "b")
        for call in (lambda: store.drop_table("x"), lambda: store.rename_table("x", "y")):
            with pytest.raises(KeyError, match=r"no table 'x'; its tables are \['a', 'b'\]"):
                call()
        with pytest.raises(ValueError, match="has a table 'b' already"):
            store.rename_table("a", "b")
        with pytest.raises(ValueError, match="has a table 'a' already"):
            store.rename_table("a", "a")
        with pytest.raises(TypeError, match="must be a str, got 3"):
            store.rename_table("a", 3)
        with pytest.raises(ValueError, match="must not be empty"):
            store.rename_table("a", "")
        assert list(store.tables()) == ["a", "b"]
    with pytest.raises(damo.StoreClosedError):
        store.drop_table("a")
    with damo.EmbeddingStore(path, read_only=True) as store:
        for call in (lambda: store.drop_table("a"), lambda: store.rename_table("a", "c")):
            with pytest.raises(ValueError, match="is read-only"):
                call()


def test_a_drop_while_a_checkpoint_is_being_written_comes_after_it(path, tmp_path):
    with small_store(path) as store:
        train(store, "a", "old", ids=range(1000))
        written = store.checkpoint_async(tmp_path / "with")
        store.drop_table("old")
        assert sorted(Manifest.read(written.result()).tables) == ["a", "old"]
        assert list(Manifest.read(store.checkpoint()).tables) == ["a"]


# ---- rename


def test_a_renamed_table_goes_on_as_it_was(path):
    with small_store(path / "twin") as twin:
        train(twin, "old", steps=2)
        ebc = collection(twin, "old")
        ebc(kjt({"old": [[1, 77]]})).values().sum().backward()
        expected, unseen = payloads(twin, "old"), ebc(kjt({"old": [[78]]})).values()
    with small_store(path / "store") as store:
        train(store, "old", steps=2)
        store.rename_table("old", "new")
        assert list(store.tables()) == ["new"]
    for _ in range(2):
        with small_store(path / "store") as store:
            ebc = collection(store, "new")
            if store.step == 2:
                ebc(kjt({"new": [[1, 77]]})).values().sum().backward()
            assert payloads(store, "new") == expected
            assert torch.equal(ebc(kjt({"new": [[78]]})).values(), unseen), "initial values follow the first name"


def test_names_that_swap_keep_their_own_initial_values(store):
    train(store, "a", "b", ids=[1])
    first = {name: collection(store, name)(kjt({name: [[9]]})).values().detach() for name in "ab"}
    gc.collect()
    store.rename_table("a", "c")
    store.rename_table("b", "a")
    store.rename_table("c", "b")
    for new, old in (("a", "b"), ("b", "a")):
        assert torch.equal(collection(store, new)(kjt({new: [[9]]})).values(), first[old])
    gc.collect()
    store.rename_table("a", "x")
    store.rename_table("x", "b2")
    assert store.session.catalog.entry("b2", store.session.engine).schema.stream == "b"


def test_a_table_that_gets_its_first_name_back_is_written_as_before(path):
    with small_store(path) as store:
        train(store, "old")
        store.rename_table("old", "new")
        renamed = store.checkpoint()
        store.rename_table("new", "old")
        again = store.checkpoint()
    documents = [json.loads((at / "manifest.json").read_text()) for at in (renamed, again)]
    assert [document["format_version"] for document in documents] == [5, 4]
    assert documents[0]["manifest"]["tables"]["new"]["schema"]["stream"] == "old"
    assert "stream" not in documents[1]["manifest"]["tables"]["old"]["schema"]


def test_a_table_without_a_checkpoint_is_renamed(store):
    train(store, "old")
    store.rename_table("old", "new")
    collection(store, "new")(kjt({"new": [[50]]})).values().sum().backward()
    twin = small_store()
    train(twin, "old")
    train(twin, "old", ids=[50])
    assert payloads(store, "new") == payloads(twin, "old")
    twin.close()


def test_a_handle_follows_a_rename(store):
    train(store, "old")
    table = store.table("old")
    store.rename_table("old", "new")
    assert table.name == "new"
    assert len(table) == 3
    assert table == store.table("new")


def test_an_older_checkpoint_brings_the_older_name_back(path):
    with small_store(path) as store:
        train(store, "old")
        before = store.checkpoint()
        held = store.table("old")
        store.rename_table("old", "new")
        store.checkpoint()
        store.restore(before)
        assert list(store.tables()) == ["old"]
        with pytest.raises(damo.DamoError, match="no table 'new' any more"):
            held.get([1])


# ---- deltas


@pytest.mark.parametrize("change", ["drop", "rename"])
def test_deltas_begin_anew_and_say_so(path, tmp_path, change):
    with small_store(path) as store:
        train(store, "a", "old")
        base = store.checkpoint()
        train(store, "a", "old")
        if change == "drop":
            store.drop_table("old")
        else:
            store.rename_table("old", "new")
        with pytest.raises(ValueError, match=r"\(since then table 'old' was .*needs a new base"):
            store.export_delta(tmp_path / "delta", since=base)
        assert not (tmp_path / "delta").exists()
        anew = store.checkpoint()
        train(store, "a", ids=[9])
        delta = damo.Delta.read(store.export_delta(tmp_path / "delta", since=anew))
        assert sorted(delta.tables) == (["a"] if change == "drop" else ["a", "new"])
    with small_store(path) as store:
        with pytest.raises(ValueError, match="needs a new base"):
            store.export_delta(tmp_path / "again", since=base)
        store.export_delta(tmp_path / "again", since=anew)


def test_a_dropped_feature_leaves_its_model_alone(path, caplog):
    caplog.set_level(logging.INFO, "damo_torchrec")
    with small_store(path) as store:
        train(store, "a", "old")
    with small_store(path) as store:
        store.drop_table("old")
        assert "dropped table 'old'" in caplog.text
        train(store, "a")
