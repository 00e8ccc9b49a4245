"""Deltas of stores that are not plain: in memory, of an earlier release, repaired, read-only, of 16-bit rows."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec import Delta
from damo_torchrec.rescue.repair import repair
from delta_model import Model, applied
from support import config, small_store
from training import collection, update

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


def test_a_store_in_memory_has_nothing_that_a_delta_could_begin_from(tmp_path):
    with small_store() as store:
        update(collection(store, "t"), {"t": [[1]]})
        with pytest.raises(ValueError, match=r'backend="memory" has no checkpoints for a delta'):
            store.export_delta(tmp_path / "delta", since=0)
    assert not (tmp_path / "delta").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_an_earlier_release_wrote_hide_nothing(version, tmp_path):
    """They do not say how recent their rows are, and their checkpoint has no line."""
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


def test_gradients_that_wait_are_in_no_delta(tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        model = Model(store)
        model.train("a", [1])
        base = store.checkpoint()
        store.accumulate(2)
        before = model.rows()
        model.train("a", [1, 2])
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=base))
        assert applied(before, delta) == model.rows() == before
        model.train("a", [3])
        assert applied(before, Delta.read(store.export_delta(tmp_path / "more", since=base))) == model.rows() != before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_16_bits_are_given_as_float32(dtype, tmp_path):
    with damo.EmbeddingStore(tmp_path / "store") as store:
        ebc = damo.EmbeddingBagCollection(
            [config("t", dim=3)],
            torch.optim.SGD,
            {"lr": 0.5},
            table_options={"t": damo.TableOptions(row_dtype=dtype)},
            store=store,
        )
        values = torch.tensor([[0.1, -2.7, 3e-3], [1e4, 7.0, -0.3]])
        store.table("t").set([-1, 5], values)
        delta = Delta.read(store.export_delta(tmp_path / "delta", since=0))
        assert ebc is not None
    assert delta.tables["t"].weights.dtype == np.float32
    np.testing.assert_array_equal(delta.tables["t"].weights, values.to(dtype).float().numpy())
