"""`TableOptions` of how long rows live, from a collection to the engine, the checkpoint and back."""

import gc
import json
import logging
import warnings
from dataclasses import replace

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.life import Life
from support import config, kjt, payloads, small_store

OPTIONS = {"expire": [damo.Idle(steps=3)], "max_rows": 100}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store"


def collection(store, name="t", **options):
    given = {name: damo.TableOptions(**options)} if options else None
    return damo.EmbeddingBagCollection(
        [config(name, 4)], torch.optim.Adagrad, {"lr": 0.1}, store=store, table_options=given
    )


def train(ebc, *batches, name="t"):
    for ids in batches:
        ebc(kjt({name: [list(ids)]})).values().sum().backward()


def living(store, name="t"):
    return [int(i) for ids, _ in store.table(name).items() for i in ids]


def in_force(store, name="t"):
    return store.table(name).opened.life


def came_and_went(store, name="t"):
    return replace(store.table(name).stats().life, memory_bytes=0)


# ------------------------------------------------------------------ options in force


def test_rows_go_and_figures_say_why(path):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2], [2], [2], [2], [2])
        table = store.table("t")
        assert living(store) == [2]
        assert (len(table), table.contains([1, 2]).tolist()) == (1, [False, True])
        life = table.stats().life
        assert (life.rows, life.created, life.cut, life.sighted) == (1, 2, 0, 0)
        assert life.expired == {damo.Idle(steps=3): 1}
        assert len(life.ladder) == 34
        assert max(life.ladder[:33]) == 2 * 256
        assert store.stats().tables["t"].life == life


def test_options_outlive_the_program_that_gave_them(path):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2], [2], [2])
    with small_store(path) as store:
        assert in_force(store) == Life(expire=[damo.Idle(steps=3)], max_rows=100), "with no collection at all"
        train(collection(store), [2], [2])
        assert living(store) == [2]
        assert store.table("t").stats().life.expired == {damo.Idle(steps=3): 1}


def test_options_that_no_update_followed_are_kept_too(path):
    with small_store(path) as store:
        train(collection(store), [1])
    with small_store(path) as store:
        collection(store, max_rows=7)
    with small_store(path) as store:
        assert in_force(store).max_rows == 7


def test_a_change_of_options_is_logged_and_keeps_what_has_gone_away(path, caplog):
    with small_store(path) as store:
        train(collection(store, expire=[damo.Idle(steps=2)]), [1], [2], [2], [2])
        assert living(store) == [2]
    with small_store(path) as store, caplog.at_level(logging.INFO):
        train(collection(store, expire=[]), [3], [3], [3], [3], [3])
        assert living(store) == [2, 3], "none go any more, and none come back"
        assert "live by: no rule: every id gets a row, which stays; before: expire=[Idle(steps=2)]" in caplog.text
        caplog.clear()
        collection(store)
        assert "live by" not in caplog.text, "nothing has changed"


def test_a_store_without_options_stays_as_it_was(path):
    with small_store(path) as store:
        ebc = collection(store, expire=[], max_rows=float("inf"), admit=damo.Admit(sightings=1), min_rows=0)
        train(ebc, [1, 2])
        assert in_force(store) is None
        assert store.table("t").stats().life is None
        checkpoint = store.checkpoint()
    assert json.loads((checkpoint / "manifest.json").read_text())["format_version"] == 4
    assert not list(checkpoint.glob("*.life.bin"))


def test_rows_that_were_there_before_take_part(path):
    with small_store(path) as store:
        train(collection(store), [1], [2], [3], [3], [3])
    with small_store(path) as store:
        train(collection(store, expire=[damo.Idle(steps=3)]), [4])
        assert living(store) == [3, 4]


def test_two_collections_must_not_ask_for_different_things(path):
    with small_store(path) as store:
        first = collection(store, max_rows=5)
        with pytest.raises(ValueError, match=r"whose TableOptions have max_rows 5, got 6\. Give both"):
            collection(store, max_rows=6)
        collection(store, max_rows=5, credit=2)
        assert in_force(store) == Life(max_rows=5, credit=2)
        del first
        gc.collect()
        collection(store, max_rows=6)
        assert in_force(store).max_rows == 6


def test_options_that_contradict_those_of_the_table_are_refused_before_any_table_is_opened(path):
    with small_store(path) as store:
        train(collection(store, max_rows=5), [1])
    with small_store(path) as store:
        with pytest.raises(ValueError, match="table 't': keep_rows must be at most max_rows, which is 5, got 6"):
            damo.EmbeddingBagCollection(
                [config("new", 4), config("t", 4)],
                torch.optim.Adagrad,
                {"lr": 0.1},
                store=store,
                table_options={"t": damo.TableOptions(keep_rows=6)},
            )
        assert list(store.tables()) == ["t"]


def test_a_read_only_store_goes_by_what_is_stored(path, caplog):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2], [2], [2], [2], [2])
    with damo.EmbeddingStore(path, read_only=True) as store, caplog.at_level(logging.INFO):
        ebc = collection(store, max_rows=1)
        assert in_force(store).max_rows == 100
        assert living(store) == [2]
        assert store.table("t").stats().life.expired == {damo.Idle(steps=3): 1}
        assert ebc.eval()(kjt({"t": [[1]]})).values().abs().sum() == 0
        assert "is only read: how long rows live is as it is stored" in caplog.text


# ------------------------------------------------------------------ checkpoints


def test_a_checkpoint_says_so_in_format_6_and_brings_it_back(path, tmp_path):
    with small_store(path) as store:
        ebc = collection(store, **OPTIONS)
        train(ebc, [1, 2], [2], [2])
        checkpoint = store.checkpoint(tmp_path / "copy")
        before, life = payloads(store, "t"), came_and_went(store)
        train(ebc, [2], [2])
        assert living(store) == [2]
        manifest = Manifest.read(checkpoint)
        assert manifest.format_version() == 6
        assert manifest.tables["t"].life == in_force(store)
        assert manifest.tables["t"].rows == 2
        store.restore(checkpoint)
        assert (payloads(store, "t"), came_and_went(store)) == (before, life)
        train(ebc, [2], [2])
        assert living(store) == [2]


def test_ids_that_were_seen_get_the_rows_that_they_would_have_got_without_a_stop(path, tmp_path):
    """Their sightings come back with a checkpoint's journal, and with its table files."""
    options = {"admit": damo.Admit(sightings=2)}
    for flush in (False, True):
        with small_store(path / str(flush)) as store:
            ebc = collection(store, **options)
            train(ebc, [1, 2])
            if flush:
                store.flush()
            copy = store.checkpoint(tmp_path / f"copy {flush}")
            unseen = ebc(kjt({"t": [[1], [3]]})).values().detach()
            train(ebc, [1], [2])
            expected = payloads(store, "t")
        assert expected.keys() == {1, 2}
        with damo.EmbeddingStore(tmp_path / f"on {flush}", restore=copy) as store:
            ebc = collection(store)
            assert torch.equal(ebc(kjt({"t": [[1], [3]]})).values().detach(), unseen)
            train(ebc, [1], [2])
            assert payloads(store, "t") == expected


def test_options_of_collections_that_live_hold_after_a_restore(path):
    with small_store(path) as store:
        ebc = collection(store)
        train(ebc, [1])
        before = store.checkpoint()
        del ebc
        gc.collect()
        ebc = collection(store, max_rows=9)
        train(ebc, [2])
        store.restore(before)
        assert in_force(store) == Life(max_rows=9)


def test_a_restore_that_would_contradict_what_collections_ask_is_refused_before_anything_changes(path):
    with small_store(path) as store:
        train(collection(store, max_rows=5), [1])
        gc.collect()
        before = store.checkpoint()
        train(collection(store, max_rows=float("inf")), [2])
        gc.collect()
        ebc = collection(store, min_rows=6)
        with pytest.raises(ValueError, match="'t' has other TableOptions in that checkpoint: min_rows must be at most"):
            store.restore(before)
        train(ebc, [3])
        assert living(store) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["missing", "other bytes", "no life"])
def test_a_damaged_life_is_corruption_that_is_named(path, kind):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2])
    (file,) = path.glob("checkpoints/*/*.life.bin")
    if kind == "missing":
        file.unlink()
    elif kind == "other bytes":
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    else:
        checkpoint = file.parent
        manifest = Manifest.read(checkpoint)
        file.write_bytes(b"no life")
        (checkpoint / "manifest.json").unlink()
        manifest.with_files(checkpoint).write(checkpoint)
    with pytest.raises(damo.CorruptionError, match=file.name if kind != "no life" else "'t'|\"t\""):
        small_store(path)


def test_it_goes_with_a_table_that_is_renamed_and_ends_with_one_that_is_dropped(path):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2], [2], [2])
        gc.collect()
        store.rename_table("t", "new")
        life = came_and_went(store, "new")
    with small_store(path) as store:
        assert came_and_went(store, "new") == life
        train(collection(store, "new"), [2], [2], name="new")
        assert living(store, "new") == [2]
        gc.collect()
        store.drop_table("new")
        checkpoint = store.checkpoint()
    assert not list(checkpoint.glob("*.life.bin"))
    assert Manifest.read(checkpoint).format_version() == 4


def test_it_goes_on_in_a_table_that_is_converted(path):
    with small_store(path) as store:
        train(collection(store, **OPTIONS), [1, 2], [2], [2])
        gc.collect()
        before = came_and_went(store)
        store.convert_table("t", dim=8)
        assert came_and_went(store) == before
        assert len(store.table("t")) == 2
    with small_store(path) as store:
        ebc = damo.EmbeddingBagCollection([config("t", 8)], torch.optim.Adagrad, {"lr": 0.1}, store=store)
        train(ebc, [2], [2])
        assert living(store) == [2]


# ------------------------------------------------------------------ the clock


def test_rows_go_by_the_stores_clock(path):
    with small_store(path) as store:
        now = [1_000.0]
        store.clock = lambda: now[0]
        ebc = collection(store, expire=[damo.Idle(minutes=10)])
        train(ebc, [1, 2])
        for _ in range(15):
            now[0] += 60
            train(ebc, [2])
        assert living(store) == [2]


def test_a_leap_of_the_clock_empties_no_table_and_warns(path):
    with small_store(path) as store:
        now = [1_000.0]
        store.clock = lambda: now[0]
        ebc = collection(store, expire=[damo.Idle(hours=1)])
        train(ebc, [1], [2])
        now[0] += 1_000_000
        with pytest.warns(damo.ClockWarning, match=r"by 1000000 seconds, .* 1800 by Idle\(hours=1\) of table 't'\."):
            train(ebc, [2])
        assert living(store) == [1, 2]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(ebc, [2])


def test_a_clock_that_goes_back_warns_once(path):
    with small_store(path) as store:
        ebc = collection(store, expire=[damo.Idle(hours=1)])
        train(ebc, [1])
        store.clock = lambda: 5.0
        with pytest.warns(damo.ClockWarning, match=r"gone back by \d+ seconds.* Set store.clock before the first"):
            train(ebc, [1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(ebc, [1])


@pytest.mark.parametrize(("time", "error"), [("now", TypeError), (float("nan"), ValueError), (None, TypeError)])
def test_what_is_no_time_is_refused_before_anything_changes(path, time, error):
    with small_store(path) as store:
        ebc = collection(store, **OPTIONS)
        train(ebc, [1])
        with pytest.raises(TypeError, match="clock must be a function that returns seconds, got 3"):
            store.clock = 3
        store.clock = lambda: time
        before = payloads(store, "t")
        with pytest.raises(error, match=r"the clock of the store .* must return"):
            train(ebc, [1])
        assert (payloads(store, "t"), store.table("t").iter) == (before, 1)


# ------------------------------------------------------------------ figures


def test_a_preview_says_what_would_go_and_lets_it_stay(path):
    with small_store(path) as store:
        ebc = collection(store, max_rows=1_000)
        train(ebc, *([i] for i in range(40)))
        table = store.table("t")
        assert table.preview() == 0
        assert 0 < table.preview(expire=[damo.Idle(steps=10)]) <= 30
        assert table.preview(max_rows=10, keep_rows=10) >= 30
        assert len(table) == 40
        with pytest.raises(ValueError, match="keep_rows must be at most max_rows"):
            table.preview(max_rows=1, keep_rows=2)
        train(collection(store, "u"), [1], name="u")
        with pytest.raises(ValueError, match="table 'u': its rows are not counted by their age"):
            store.table("u").preview(max_rows=1)


def test_counters_are_of_rows_and_of_ids_that_are_only_seen(path):
    with small_store(path) as store:
        train(collection(store, admit=damo.Admit(sightings=3)), [1, 2], [2, 2, 2], [1])
        table = store.table("t")
        last_step, count = table.counters([1, 2, 3])
        assert table.contains([1, 2, 3]).tolist() == [False, True, False]
        assert (last_step.tolist(), count.tolist()) == ([3, 2, 0], [2, 1, 0])
        known = table.metadata([1, 2, 3])
        assert (known.updates.tolist(), known.sightings.tolist()) == ([0, 1, 0], [2, 0, 0])
        assert table.stats().life.sighted == 1


def test_a_checkpoint_logs_what_came_and_went(path, caplog):
    with small_store(path) as store, caplog.at_level(logging.INFO):
        ebc = collection(store, **OPTIONS)
        train(ebc, [1, 2], [2], [2], [2], [2])
        store.checkpoint()
        assert "2 were made, 1 expired by Idle(steps=3); 1 live" in caplog.text
        caplog.clear()
        train(ebc, [2])
        store.checkpoint_async().result()
        assert "rows of table" not in caplog.text, "nothing came or went"
