"""Servers drop what a store dropped: the engine's own ladder, deltas, and the predictor's rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

import damo_torchrec as damo
from damo_torchrec import Delta
from publishing_model import ARGUMENTS, REQUEST, WEIGHT, Model, cheap_exports, dense_graph_of

MANY = 20_000


@pytest.fixture(scope="module", autouse=True)
def graph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cheap_exports(dense_graph_of(tmp_path_factory.mktemp("graph"))):
        yield


def train(model: Model, ids: list[int]) -> None:
    model.train()
    model(KeyedJaggedTensor(["f"], torch.tensor(ids), lengths=torch.ones(len(ids), dtype=torch.int64))).sum().backward()


def request_of(ids: torch.Tensor) -> dict[str, KeyedJaggedTensor]:
    return {"features": KeyedJaggedTensor(["f"], ids, lengths=torch.ones(len(ids), dtype=torch.int64))}


def check(predictor: damo.serving.Predictor, store: damo.EmbeddingStore) -> None:
    rows = store.table("t").get(REQUEST["features"].values()).numpy()
    np.testing.assert_allclose(predictor.predict(REQUEST)["output"][:, 0], rows @ np.array(WEIGHT), atol=1e-6)


def test_many_rows_that_expire_cost_a_ladder(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, expire=[damo.Idle(steps=2)])
        train(model, [1])
        store.table("t").set(torch.arange(MANY), torch.ones(MANY, 2))
        base = damo.serving.export(model, ARGUMENTS, tmp_path / "served")
        for _ in range(4):
            train(model, [1])
        assert len(store.table("t")) == 1
        path = store.export_delta(tmp_path / "delta", since=base)
        assert sum(file.stat().st_size for file in path.iterdir()) < 4096
        with damo.serving.Predictor(base, memory_budget="64MiB", num_threads=1) as predictor:
            every_id = request_of(torch.arange(MANY))
            assert np.count_nonzero(predictor.predict(every_id)["output"][:, 0]) == MANY
            predictor.apply_delta(path)
            assert np.flatnonzero(predictor.predict(every_id)["output"][:, 0]).tolist() == [1]


@pytest.mark.parametrize("sessions_without_a_step", [0, 1])
def test_rows_begin_to_die_while_a_server_follows(sessions_without_a_step: int, tmp_path: Path) -> None:
    """It was given rows before that without when they were updated."""
    store_path = tmp_path / "store"
    with damo.EmbeddingStore(store_path, memory_budget="64MiB") as store:
        model = Model(store)
        train(model, [0, 1, 2, 3, 4])
        base = damo.serving.export(model, ARGUMENTS, tmp_path / "served")
        for _ in range(6):
            train(model, [5, 6])
        train(model, [6])
        first = store.export_delta(tmp_path / "first", since=base)
    for _ in range(sessions_without_a_step):
        with damo.EmbeddingStore(store_path, memory_budget="64MiB") as store:
            Model(store, expire=[damo.Idle(steps=3)])
    with (
        damo.serving.Predictor(base, memory_budget="64MiB", num_threads=1) as predictor,
        damo.EmbeddingStore(store_path, memory_budget="64MiB") as store,
    ):
        predictor.apply_delta(first)
        check(predictor, store)
        model = Model(store, expire=[damo.Idle(steps=3)])
        train(model, [3])
        path = store.export_delta(tmp_path / "second", since=first)
        assert Delta.read(path).tables["t"].ids.tolist() == store.table("t").to_torch()[0].tolist() == [3, 5, 6]
        predictor.apply_delta(path)
        check(predictor, store)
        for number in range(3):
            train(model, [7 + number])
            path = store.export_delta(tmp_path / f"later-{number}", since=path)
            assert len(Delta.read(path).tables["t"].ids) <= 2
            predictor.apply_delta(path)
            check(predictor, store)
        assert store.table("t").to_torch()[0].tolist() == [3, 7, 8, 9]


def test_a_server_has_what_lives_again_in_a_store_that_went_back(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, expire=[damo.Idle(steps=3)])
        train(model, [0, 1, 2, 3])
        train(model, [1])  # so that the others have not changed since
        damo.serving.export(model, ARGUMENTS, tmp_path / "served")
        publisher = damo.serving.DeltaPublisher(store, tmp_path / "deltas", every_steps=1)
        saved = store.checkpoint(tmp_path / "saved")
        with damo.serving.Predictor(tmp_path / "served", memory_budget="64MiB", num_threads=1) as predictor:
            for _ in range(6):
                train(model, [1, 5])
            abandoned = publisher.publish()
            assert abandoned is not None
            predictor.apply_delta(abandoned)
            check(predictor, store)
            assert store.table("t").to_torch()[0].tolist() == [1, 5]
            store.restore(saved)
            train(model, [3])
            back = publisher.publish()
            assert back is not None
            predictor.apply_delta(back)
            assert store.table("t").to_torch()[0].tolist() == [0, 1, 2, 3]
            check(predictor, store)
            for _ in range(6):
                train(model, [2])
            predictor.apply_delta(publisher.publish())
            check(predictor, store)


def test_a_server_does_not_mind_how_many_rows_training_may_have(tmp_path: Path) -> None:
    """Deltas may bring it more before others are dead: it has no options of its own."""
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, max_rows=4)
        train(model, [0, 1, 2, 3])
        base = damo.serving.export(model, ARGUMENTS, tmp_path / "served")
        with damo.serving.Predictor(base, memory_budget="64MiB", num_threads=1) as predictor:
            for step in range(4):
                train(model, [4 + step, 5 + step, 6 + step])
                base = store.export_delta(tmp_path / f"delta-{step}", since=base)
                predictor.apply_delta(base)
                check(predictor, store)
            assert len(store.table("t")) <= 4


def test_rows_of_another_store_are_for_tables_that_follow_its_ladder(tmp_path: Path) -> None:
    ids, weights, headers = np.array([1]), np.ones((1, 2), np.float32), np.array([[3, 1]], np.uint32)
    rows = (ids.ctypes.data, 1, weights.ctypes.data, headers.ctypes.data)
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, expire=[damo.Idle(steps=3)])
        train(model, [0])
        engine, index = store.session.engine, store.table("t").opened.index
        with pytest.raises(ValueError, match="has a life of its own"):
            engine.set_copies(index, *rows)
        assert not store.table("t").contains([1])
        store.session.give_up_rows()


def test_servers_hear_of_rows_that_are_forgotten(tmp_path: Path) -> None:
    """Of rows that live and that died, in what servers begin from and in deltas."""
    (tmp_path / "deltas").mkdir()
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, expire=[damo.Idle(steps=4)])
        train(model, [1, 2, 3, 4, 5])
        base = damo.serving.export(model, ARGUMENTS, tmp_path / "served")
        train(model, [1, 2, 6])
        first = store.export_delta(tmp_path / "deltas" / "1", since=base)
        with damo.serving.Predictor(base, memory_budget="64MiB", num_threads=1) as predictor:
            predictor.apply_delta(first)
            for _ in range(4):
                train(model, [2])
            assert store.table("t").contains([1, 2, 3, 6]).tolist() == [True, True, False, True]
            report = store.forget({"t": [1, 3, 6]}, exports=base, deltas=tmp_path / "deltas")
            assert {left.what for left in report.remaining} == {"working copy", "file"}, report
            second = store.export_delta(tmp_path / "deltas" / "2", since=first)
            predictor.apply_delta(second)
            check(predictor, store)
        assert store.forget({"t": [1, 3, 6]}, exports=base, deltas=tmp_path / "deltas").complete
        changes = Delta.read(first).tables["t"]
        assert {1, 6} <= {*changes.deleted.tolist()}
        assert not {1, 3, 6} & {*changes.ids.tolist()}
        with damo.serving.Predictor(base, memory_budget="64MiB", num_threads=1) as predictor:
            for delta in (first, second):
                predictor.apply_delta(delta)
            check(predictor, store)
            assert not np.isin([1, 3, 6], living(base)).any()


def living(checkpoint: Path) -> list[int]:
    with damo.EmbeddingStore(checkpoint, memory_budget="64MiB", read_only=True) as store:
        return [int(i) for ids, _ in store.table("t").items() for i in ids]
