"""Deltas: what changed in a store, against the rows before and after."""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

import damo_torchrec as damo
from damo_torchrec import Delta
from delta_model import Model, applied
from mixed_run import collection, update
from support import config, small_store


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Model]:
    with damo.EmbeddingStore(tmp_path / "store") as store:
        yield Model(store)


def test_it_holds_what_changed_and_no_more(model: Model, tmp_path: Path) -> None:
    model.train("a", [1, 2, 3, -7])
    model.train("a", [-7])  # a delta has what is of the base's own step, too: it may have been set since
    model.train("b", [1])
    base = model.store.checkpoint()
    before = model.rows()
    model.train("a", [2, 2**63 - 1])
    model.table("a").delete([3, 99])
    model.store.export_delta(tmp_path / "delta", since=base)
    delta = Delta.read(tmp_path / "delta")
    assert delta.tables["a"].ids.tolist() == [-7, 2, 2**63 - 1]
    assert delta.tables["a"].deleted.tolist() == [3]
    assert delta.tables["b"].deleted.tolist() == []
    assert (delta.since_step, delta.step, delta.files) == (2, 3, [])
    assert applied(before, delta) == model.rows()
    assert applied(applied(before, delta), delta) == model.rows()


def test_a_table_that_lags_behind(model: Model, tmp_path: Path) -> None:
    """Its iterations are below the store's step at the base; its changes count all the same."""
    for _ in range(5):
        model.train("a", [1])
    model.train("b", [1, 2])
    model.train("b", [2])
    model.store.checkpoint()
    before = model.rows()
    model.train("b", [2, 3])
    model.store.export_delta(tmp_path / "delta", since=5)
    delta = Delta.read(tmp_path / "delta")
    assert delta.tables["b"].ids.tolist() == [2, 3]
    assert applied(before, delta) == model.rows()


def test_rows_that_were_set_and_rows_that_came_back(model: Model, tmp_path: Path) -> None:
    model.train("a", [1, 2, 3])
    model.store.checkpoint()
    before = model.rows()
    model.table("a").set([2], torch.full((1, 3), 9.0))  # at the same iteration
    model.table("a").delete([1, 3])
    model.train("a", [3])
    model.store.export_delta(tmp_path / "delta", since=1)
    delta = Delta.read(tmp_path / "delta")
    assert delta.tables["a"].deleted.tolist() == [1]
    assert applied(before, delta) == model.rows()


def test_nothing_changed(model: Model, tmp_path: Path) -> None:
    model.train("a", [1])
    model.train("a", [2])
    base = model.store.checkpoint()
    model.store.export_delta(tmp_path / "delta", since=base)
    delta = Delta.read(tmp_path / "delta")
    assert delta.tables["a"].deleted.size == delta.tables["b"].ids.size == 0
    assert delta.tables["a"].ids.tolist() == [2]  # of the base's own step: it may have been set since


def test_a_table_that_is_new(model: Model, tmp_path: Path) -> None:
    base = model.store.checkpoint()
    before = model.rows()
    ebc = model._collection("late")
    model.ebcs["late"] = ebc
    model.train("late", [5, 6])
    delta = Delta.read(model.store.export_delta(tmp_path / "delta", since=base))
    assert delta.tables["late"].ids.tolist() == [5, 6]
    assert applied(before, delta) == model.rows()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["train", "set", "delete", "checkpoint", "flush", "delta"]),
        st.sampled_from(["a", "b"]),
        st.lists(st.integers(-12, 12), min_size=1, max_size=6),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_deltas_lead_from_any_state_to_any_later_one(
    steps: list[tuple[str, str, list[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.mktemp("deltas")
    with damo.EmbeddingStore(where / "store", options=damo.StoreOptions(cache_bytes=1 << 16)) as store:
        model = Model(store)
        states = [(model.store.checkpoint(where / "first"), model.rows())]
        for number, (kind, name, ids) in enumerate([*steps, ("delta", "a", [0])]):
            if kind == "train":
                model.train(name, ids)
            elif kind == "set":
                model.table(name).set(ids, torch.full((len(ids), 3), float(number)))
            elif kind == "delete":
                model.table(name).delete(ids)
            elif kind == "flush":
                model.store.flush()
            elif kind == "checkpoint":
                states.append((model.store.checkpoint(where / f"c{number}"), model.rows()))
            else:
                base, before = states[len(ids) % len(states)]
                path = model.store.export_delta(where / f"d{number}", since=base)
                assert applied(before, Delta.read(path)) == model.rows()
                states.append((path, model.rows()))


def test_wrong_calls(model: Model, tmp_path: Path) -> None:
    model.train("a", [1])
    base = model.store.checkpoint()
    for since, error, message in (
        (77, ValueError, "no state of this store that it remembers; those are of the steps 0, 1"),
        (True, TypeError, "must be a step, or the path"),
        (1.5, TypeError, "must be a step, or the path"),
        (tmp_path, ValueError, "no state of this store"),
        (tmp_path / "nothing", ValueError, "no state of this store"),
    ):
        with pytest.raises(error, match=message):
            model.store.export_delta(tmp_path / "d", since=since)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="exists already: a delta needs a new directory"):
        model.store.export_delta(tmp_path / "there", since=base)
    with pytest.raises(ValueError, match="needs an existing parent"):
        model.store.export_delta(tmp_path / "x" / "y", since=base)
    with pytest.raises(ValueError, match="is no delta"):
        Delta.read(base)


def test_a_table_that_no_collection_opens_any_more_is_part_of_deltas(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store") as store:
        update(collection(store, "old", "kept"), {"old": [[1]], "kept": [[1]]})
        base = store.checkpoint()
        update(collection(store, "old"), {"old": [[2]]})
    with damo.EmbeddingStore(tmp_path / "store") as store:
        update(collection(store, "kept"), {"kept": [[3]]})
        store.export_delta(tmp_path / "delta", since=base)
    delta = Delta.read(tmp_path / "delta")
    assert {name: changes.ids.tolist() for name, changes in delta.tables.items()} == {"kept": [1, 3], "old": [1, 2]}


def test_a_full_disk_leaves_nothing_behind(model: Model, tmp_path: Path) -> None:
    base = model.store.checkpoint()
    model.train("a", list(range(2000)))
    model.store.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(damo.OutOfSpaceError):
            model.store.export_delta(tmp_path / "delta", since=base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    delta = Delta.read(model.store.export_delta(tmp_path / "delta", since=base))
    assert len(delta.tables["a"].ids) == 2000


def damages(delta: Path) -> Iterator[tuple[str, Any]]:
    for file in sorted(delta.iterdir()):
        content = file.read_bytes()
        yield file.name, lambda f: f.unlink()
        yield file.name, lambda f, c=content: f.write_bytes(c[: len(c) // 2])
        yield file.name, lambda f, c=content: f.write_bytes(c + b"x")
        for at in (0, len(content) // 2, len(content) - 2):
            flipped = bytearray(content)
            flipped[at] ^= 4
            yield file.name, lambda f, c=bytes(flipped): f.write_bytes(c)


def test_damage_is_found(model: Model, tmp_path: Path) -> None:
    base = model.store.checkpoint()
    model.train("a", [1, 2, 3])
    model.table("a").delete([2])
    path = model.store.export_delta(tmp_path / "delta", since=base)
    cases = list(damages(path))
    assert len(cases) > 30
    for name, damage in cases:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        damage(copy / name)
        with pytest.raises((damo.CorruptionError, ValueError)) as error:
            Delta.read(copy)
        assert str(copy) in str(error.value)
        assert (error.type is ValueError) == (not (copy / "delta.json").exists())


def test_arrays_are_of_numpys_own_format(model: Model, tmp_path: Path) -> None:
    base = model.store.checkpoint()
    model.train("a", [4, -4])
    path = model.store.export_delta(tmp_path / "delta", since=base)
    number = json.loads((path / "delta.json").read_text())["delta"]["tables"]["a"]["number"]
    np.testing.assert_array_equal(np.load(path / f"{number}.ids.npy"), [-4, 4])
    np.testing.assert_array_equal(np.load(path / f"{number}.weights.npy"), model.table("a").get([-4, 4]).numpy())


def test_a_store_in_memory_has_nothing_that_a_delta_could_begin_from(tmp_path):
    with small_store() as store:
        update(collection(store, "t"), {"t": [[1]]})
        with pytest.raises(ValueError, match=r'backend="memory" has no checkpoints for a delta'):
            store.export_delta(tmp_path / "delta", since=0)
    assert not (tmp_path / "delta").exists()


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
