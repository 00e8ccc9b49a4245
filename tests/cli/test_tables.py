"""`damo-torchrec drop-table`, `rename-table` and `compact`."""

import torch

import damo_torchrec as damo
from support import config, payloads, small_store


def test_a_table_is_dropped(trained, call, document):
    assert call("drop-table", trained, "t", "--yes") == (0, ["table 't', with 5 rows, was dropped"], "")
    assert [*document("stats", trained)[1]["tables"]] == ["half"]
    assert [*document("stats", trained, "--checkpoint", "step_2")[1]["tables"]] == ["half", "t"]
    status, _, err = call("drop-table", trained, "t", "--yes")
    assert (status, "has no table 't'" in err) == (2, True)


def test_a_table_is_renamed(trained, call, document):
    rows = document("head", trained, "t")[1]["rows"]
    assert call("rename-table", trained, "t", "u") == (0, ["table 't' was renamed 'u'"], "")
    assert document("head", trained, "u")[1]["rows"] == rows
    for old, new, message in [("t", "v", "has no table 't'"), ("u", "half", "has a table 'half' already")]:
        status, _, err = call("rename-table", trained, old, new)
        assert (status, message in err) == (2, True)


def test_a_name_that_is_no_text_is_refused(trained, call):
    status, _, err = call("rename-table", trained, "t", "\udcff")
    assert (status, "a table's name must be text that UTF-8 can hold" in err) == (2, True)


def test_a_path_that_is_no_text_is_refused(trained, tmp_path, call):
    odd = trained.rename(tmp_path / "\udcff")
    status, _, err = call("compact", odd)
    assert (status, "the path of a store must be text that UTF-8 can hold" in err) == (2, True)
    status, lines, _ = call("info", odd)
    assert (status, lines[0]) == (0, f"store {tmp_path}/\\udcff")


def test_compact_gives_back_what_was_deleted(tmp_path, call, document):
    with small_store(tmp_path / "store") as store:
        ebc = damo.EmbeddingBagCollection([config("t", 8)], torch.optim.SGD, {"lr": 0.1}, store=store)
        (table,) = ebc.tables()
        for _ in range(3):
            table.set(range(20_000), torch.rand(20_000, 8))
            store.flush()
        table.delete(range(100, 20_000))
        store.flush()
        before = payloads(store, "t")
    would = document("compact", tmp_path / "store", "--dry-run")[1]
    assert (would["checkpoint"], would["bytes_before"]) == (None, would["bytes_after"])
    done = document("compact", tmp_path / "store")[1]
    assert done["bytes_after"] < done["bytes_before"] / 3  # records of deletions stay, for deltas
    with damo.EmbeddingStore(done["checkpoint"], memory_budget="64MiB", read_only=True) as store:
        assert payloads(store, "t") == before
    assert call("verify", tmp_path / "store")[0] == 0
