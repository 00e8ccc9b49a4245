"""`damo_torchrec.checkpoints.lineage`: which states of a store deltas can begin from, wherever the store goes on."""

import json
import runpy
import shutil
from pathlib import Path

import pytest

import damo_torchrec as damo
from damo_torchrec import Delta
from damo_torchrec.rescue.repair import repair
from damo_torchrec.rescue.verification import verify
from delta_model import Model, applied
from forging import rehash
from mixed_run import collection, update
from support import small_store

GOLDEN = Path(__file__).parents[1] / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))


def weights_of(store: damo.EmbeddingStore) -> dict[str, dict[int, bytes]]:
    found = {}
    for name, table in store.tables().items():
        ids, weights = table.to_torch()
        found[name] = {int(i): w.numpy().tobytes() for i, w in zip(ids, weights, strict=True)}
    return found


def id_of(checkpoint: Path) -> str:
    return json.loads((checkpoint / "manifest.json").read_text())["manifest"]["id"]


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_an_earlier_release_wrote_hide_nothing(version, tmp_path):
    """They do not say how recent their rows are, and their checkpoint has no lineage."""
    golden = tmp_path / "golden"
    shutil.copytree(GOLDEN / f"format_{version}", golden)
    with damo.EmbeddingStore(tmp_path / "store", restore=golden) as store:
        model = make["make_model"](store, version)
        before = weights_of(store)
        make["one_more_step"](model)
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=golden))
        assert applied(before, delta) == weights_of(store) != before
        assert delta.follows([id_of(golden)])
        assert delta.follows([id_of(store.checkpoints()[0])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda states, own: states[-1].update(id=own), "two states have one id"),
        (lambda states, own: states.append(states[-1]), "two states have one id"),
        (lambda states, own: states.reverse(), "comes before one at"),
        (lambda states, own: states[-1].update(step=9, iters={"t": 9}), "step 9 comes before one at 3"),
        (lambda states, own: states[-1]["iters"].update(unknown=0), "tables that the checkpoint has not: .*unknown"),
        (
            lambda states, own: states.extend({"id": f"{i:032x}", "step": 2, "iters": {"t": 2}} for i in range(65)),
            "at most 64",
        ),
    ],
)
def test_states_that_cannot_have_led_to_a_checkpoint_are_corruption(tmp_path, change, message):
    with small_store(tmp_path / "store") as store:
        ebc = collection(store, "t")
        for _ in range(3):
            update(ebc, {"t": [[1]]})
            checkpoint = store.checkpoint()
    states = json.loads((checkpoint / "line.json").read_text())
    change(states, id_of(checkpoint))
    (checkpoint / "line.json").write_text(json.dumps(states))
    rehash(checkpoint, "line.json")
    with pytest.raises(damo.CorruptionError, match=rf"line\.json is damaged: .*{message}"):
        damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB")
    assert checkpoint / "line.json" in {finding.path for finding in verify(checkpoint, lambda *_: None)}


def test_a_delta_of_a_repaired_checkpoint_begins_at_the_repair(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        model.train("a", [1, 2, 3])
        model.table("a").delete([3])
        base = store.checkpoint()
    repaired = repair(base, tmp_path / "repaired", lambda *_: None).target
    with damo.EmbeddingStore(tmp_path / "again", restore=repaired) as store:
        model = Model(store)
        before = model.rows()
        model.train("a", [2])
        with pytest.raises(ValueError, match="no state of this store"):
            store.export_delta(tmp_path / "delta", since=base)
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=repaired))
        assert applied(before, delta) == model.rows()
        assert not delta.follows([id_of(base)])


def test_a_read_only_store_exports_what_its_checkpoint_changed(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        model.train("a", [1, 2])
        first = store.checkpoint()
        before = model.rows()
        model.train("a", [2, 3])
        second = store.checkpoint()
        after = model.rows()
    with damo.EmbeddingStore(second, read_only=True) as store:
        Model(store)
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=first))
    assert (delta.base, delta.line) == (id_of(first), [id_of(first), id_of(second)])
    assert applied(before, delta) == after


def test_a_checkpoint_in_the_background_is_a_state_from_its_moment_on(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        model.train("a", list(range(500)))
        written = store.checkpoint_async()
        before = model.rows()
        model.train("a", [1, 600])
        at_once = Delta.read(store.export_delta(tmp_path / "at_once", since=0))
        assert at_once.follows([id_of(written.result())])
        assert applied(before, at_once) == model.rows()
        model.train("b", [7])
        since = Delta.read(store.export_delta(tmp_path / "since", since=written.result()))
        assert applied(before, since) == model.rows()
        assert since.line == [id_of(written.result()), at_once.id]


def test_the_lineage_goes_on_in_another_session_and_ends_where_a_store_goes_back(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        model.train("a", [1])
        first = store.checkpoint()
        model.train("a", [2])
        second = store.checkpoint()
        d1 = Delta.read(store.export_delta(tmp_path / "d1", since=first))
        model.train("a", [3])
    ids = {path: id_of(path) for path in (first, second)}
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        d2 = Delta.read(store.export_delta(tmp_path / "d2", since=first))
        assert {1, 2, 3} >= set(d2.tables["a"].ids.tolist()) >= {2, 3}
        for history in ([ids[first]], [ids[second]], [ids[first], d1.id]):
            assert d2.follows(history)
        assert d1.follows([ids[first]])
        assert d1.follows([ids[second]])
        assert not d1.follows([ids[first], d2.id])
        assert not d2.follows([ids[first], d2.id])
        assert not d2.follows([])
        store.restore(second)
        with pytest.raises(ValueError, match="no state of this store"):
            store.export_delta(tmp_path / "d3", since=tmp_path / "d2")
        d4 = Delta.read(store.export_delta(tmp_path / "d4", since=first))
        assert d4.follows([ids[second]])
        assert not d4.follows([ids[first], d2.id])
