"""A predictor follows a training: every answer is of one state, whatever happens between states."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.serving import updates
from damo_torchrec.serving.overlay import pool
from damo_torchrec.serving.refresh import refresh_dense
from damo_torchrec.serving.watcher import order_of
from damo_torchrec.store.delta_writer import write_delta
from serving_cases import SGD, random_features, train
from support import small_store

IDS = 60
PATIENCE = 60  # seconds, for what takes none of them
Answer = dict[str, np.ndarray]


class Everything(nn.Module):
    """Sums, means of unseen initial values, sequences and plain rows; a layer whose weights change with them."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        options = {"means": damo.TableOptions(unseen_in_eval="initial")}
        bags = [
            EmbeddingBagConfig(name="sums", embedding_dim=4, num_embeddings=9, feature_names=["a", "b"]),
            EmbeddingBagConfig(
                name="means", embedding_dim=3, num_embeddings=9, feature_names=["b"], pooling=PoolingType.MEAN
            ),
        ]
        rows = [EmbeddingConfig(name="sequence", embedding_dim=4, num_embeddings=9, feature_names=["a"])]
        self.bags = damo.EmbeddingBagCollection(bags, is_weighted=True, store=store, table_options=options, **SGD)
        self.rows = damo.EmbeddingCollection(rows, store=store, **SGD)
        self.plain = damo.Embedding(4, store=store, optimizer={"name": "sgd", "gamma": 0.1}, padding_idx=0)
        self.layer = nn.Linear(8, 2)

    def forward(self, features: KeyedJaggedTensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        plain = self.plain(ids)
        pooled = self.bags(features).values()
        return {
            "pooled": pooled,
            "sequence": self.rows(features)["a"].values(),
            "plain": plain,
            "scores": self.layer(plain.flatten(1)),
        }


def request_of(batch: int, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng((batch, seed)).integers(-IDS, IDS, (batch, 2))
    features = random_features("ab", batch, ids=IDS, weighted=True, seed=1000 * seed + batch)
    return {"features": features, "ids": torch.from_numpy(ids)}


REQUESTS = [request_of(batch, seed=1) for batch in (1, 2, 7, 40)]


@dataclass
class Training:
    """A model on its way, the checkpoint to serve it from, and what came since."""

    store: damo.EmbeddingStore
    model: Everything
    path: Path
    newest: Path
    steps: int = 0

    def answers(self) -> list[Answer]:
        """What the model answers, by torch."""
        self.model.eval()
        with torch.no_grad():
            return [{k: v.numpy() for k, v in self.model(*request.values()).items()} for request in REQUESTS]

    def step(self) -> None:
        """Updates rows, deletes some, and changes the layer."""
        self.steps += 1
        train(self.model, tuple(request_of(10, seed=self.steps).values()))
        for table in self.store.tables().values():
            table.delete(torch.arange(-IDS, IDS)[self.steps % 7 :: 7])
        with torch.no_grad():
            for parameter in self.model.layer.parameters():
                parameter.add_(0.5)

    def delta(self, dense: bool = True, path: Path | None = None) -> Path:
        files = {}
        if dense:
            files["dense.onnx"] = refresh_dense((self.path / "served" / "dense.onnx").read_bytes(), self.model)
        target = path or self.path / f"delta-{self.store.step:012}"
        with self.store.session.mutex:
            self.newest = write_delta(self.store.session, target, self.newest, files)
        return self.newest


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, closed, with the checkpoint ``served`` beside it."""
    path = tmp_path_factory.mktemp("served")
    with small_store(path / "store") as store:
        model = Everything(store)
        train(model, *(tuple(request_of(20, seed=seed).values()) for seed in range(100, 103)))
        damo.serving.export(model, tuple(request_of(3).values()), path / "served")
        torch.save(model.layer.state_dict(), path / "layer.pt")
    return path


@pytest.fixture
def training(served: Path, tmp_path: Path) -> Iterator[Training]:
    path = tmp_path / "run"
    shutil.copytree(served, path)
    with small_store(path / "store") as store:
        model = Everything(store)
        model.layer.load_state_dict(torch.load(path / "layer.pt"))
        yield Training(store, model, path, path / "served")


@pytest.fixture
def predictor(training: Training) -> Iterator[damo.serving.Predictor]:
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB", num_threads=2) as opened:
        yield opened


def answers_of(predictor: damo.serving.Predictor) -> list[Answer]:
    return [predictor.predict(request) for request in REQUESTS]


def same(one: Answer, other: Answer) -> bool:
    """Rows to the bit; what is computed from them up to rounding."""
    exact = all(np.array_equal(one[name], other[name]) for name in ("pooled", "sequence", "plain"))
    return exact and np.allclose(one["scores"], other["scores"], atol=1e-5)


def check_same(got: list[Answer], expected: list[Answer]) -> None:
    assert all(same(one, other) for one, other in zip(got, expected, strict=True))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ------------------------------------------------------------------ one after the other


def test_answers_follow_the_model(training: Training, predictor: damo.serving.Predictor) -> None:
    check_same(answers_of(predictor), training.answers())
    for count in range(1, 4):
        training.step()
        training.step()
        predictor.apply_delta(training.delta())
        check_same(answers_of(predictor), training.answers())
        stats = predictor.stats()
        assert stats.step == stats.last_delta_step == training.store.step == predictor.step
        assert stats.deltas_applied == count
        assert stats.history[-1] == Delta.read(training.newest).id
        assert len(stats.history) == count + 1
        assert abs(stats.last_delta_time - time.time()) < PATIENCE


def test_a_delta_of_rows_alone_leaves_the_dense_part(training: Training, predictor: damo.serving.Predictor) -> None:
    layer = {name: value.clone() for name, value in training.model.layer.state_dict().items()}
    training.step()
    predictor.apply_delta(training.delta(dense=False))
    training.model.layer.load_state_dict(layer)
    check_same(answers_of(predictor), training.answers())


def test_the_overlay_alone_gives_the_new_state(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the middle of `apply_delta`: with no row, some rows, and all of them in the store."""
    seen = []
    monkeypatch.setattr(updates, "_ROWS_AT_A_TIME", 5)
    training.step()
    expected = training.answers()
    parts = updates.Updates._parts

    def watched(self: Any, n: int) -> Iterator[slice]:
        for part in parts(self, n):
            check_same(answers_of(predictor), expected)
            seen.append(part)
            yield part

    monkeypatch.setattr(updates.Updates, "_parts", watched)
    predictor.apply_delta(training.delta())
    assert len(seen) > 20
    check_same(answers_of(predictor), expected)


def test_an_answer_is_of_the_state_in_which_its_request_began(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, began, go_on = training.answers(), threading.Event(), threading.Event()
    run = predictor._lookups[1].run

    def slow(*arguments: Any) -> Any:
        began.set()
        assert go_on.wait(PATIENCE)
        return run(*arguments)

    monkeypatch.setattr(predictor._lookups[1], "run", slow)
    training.step()
    delta = training.delta()
    with ThreadPoolExecutor(2) as threads:
        old = threads.submit(predictor.predict, REQUESTS[3])
        assert began.wait(PATIENCE)
        monkeypatch.setattr(predictor._lookups[1], "run", run)
        applied = threads.submit(predictor.apply_delta, delta)
        wait_until(lambda: predictor.step == training.store.step)
        check_same(answers_of(predictor), training.answers())  # new ones do not wait
        assert not applied.done()
        go_on.set()
        assert same(old.result(), before[3])
        applied.result()
    check_same(answers_of(predictor), training.answers())


@pytest.mark.slow
def test_no_answer_mixes_states_under_load(training: Training, predictor: damo.serving.Predictor) -> None:
    states, deltas = [training.answers()], []
    for _ in range(6):
        training.step()
        states.append(training.answers())
        deltas.append(training.delta())
    stop = threading.Event()

    def ask(_: int) -> int:
        """Each answer is of one state, and none of an earlier one than an answer before it."""
        earliest, count = 0, 0
        while not stop.is_set():
            for number, request in enumerate(REQUESTS):
                answer = predictor.predict(request)
                found = [i for i in range(earliest, len(states)) if same(answer, states[i][number])]
                assert found, "an answer of no state, or of one that was over"
                earliest, count = found[0], count + 1
        return count

    with ThreadPoolExecutor(3) as threads:
        clients = [threads.submit(ask, number) for number in range(3)]
        try:
            for delta in deltas:
                asked = predictor.stats().requests
                predictor.apply_delta(delta)
                wait_until(
                    lambda asked=asked: predictor.stats().requests > asked + 30 or any(c.done() for c in clients)
                )
        finally:
            stop.set()
        assert all(client.result() > 0 for client in clients)
    check_same(answers_of(predictor), states[-1])


# ------------------------------------------------------------------ what is refused


def test_deltas_that_do_not_fit_change_nothing(training: Training, predictor: damo.serving.Predictor) -> None:
    start = training.answers()
    training.step()
    first, after_first = training.delta(), training.answers()
    training.step()
    second = training.delta()
    with pytest.raises(ValueError, match=r"does not follow what is served, which is at step "):
        predictor.apply_delta(second)
    check_same(answers_of(predictor), start)
    predictor.apply_delta(first)
    with pytest.raises(ValueError, match="is part of what is served: it was applied before"):
        predictor.apply_delta(first)
    check_same(answers_of(predictor), after_first)
    with pytest.raises(ValueError, match="is no delta"):
        predictor.apply_delta(training.path)
    assert predictor.stats().deltas_applied == 1


def test_every_damaged_file_is_refused(training: Training, predictor: damo.serving.Predictor) -> None:
    start = training.answers()
    training.step()
    delta = training.delta()
    for file in sorted(path for path in delta.iterdir() if path.stat().st_size > 0):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if file.suffix != ".json" else content[:-9])
        with pytest.raises((damo.CorruptionError, ValueError)):
            predictor.apply_delta(delta)
        file.write_bytes(content)
        check_same(answers_of(predictor), start)
    predictor.apply_delta(delta)
    check_same(answers_of(predictor), training.answers())


def test_a_dense_part_of_another_model_or_step_is_refused(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    start, graph = training.answers(), (training.path / "served" / "dense.onnx").read_bytes()
    seed = graph.replace(b'"seed": 0', b'"seed": 7')
    output = graph.replace(b"plain", b"other")
    for number, (content, error, message) in enumerate(
        [
            (graph, damo.CorruptionError, "is of step .*, but its rows of step"),
            (seed, damo.SchemaMismatchError, "is of a store with the seed 7, expected 0"),
            (output, (damo.SchemaMismatchError, damo.CorruptionError), "dense.onnx"),
        ]
    ):
        training.step()
        path = training.path / f"bad-{number}"
        with training.store.session.mutex:
            write_delta(training.store.session, path, training.newest, {"dense.onnx": content})
        with pytest.raises(error, match=message):
            predictor.apply_delta(path)
        check_same(answers_of(predictor), start)


# ------------------------------------------------------------------ interruptions


def test_an_interrupted_delta_is_served_and_completed_by_the_next_call(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "_ROWS_AT_A_TIME", 5)
    parts, left = updates.Updates._parts, 7

    def full(self: Any, n: int) -> Iterator[slice]:
        nonlocal left
        for part in parts(self, n):
            left -= 1
            if left == 0:
                raise damo.OutOfSpaceError("the disk is full")
            yield part

    training.step()
    first, after_first = training.delta(), training.answers()
    training.step()
    second = training.delta()
    with monkeypatch.context() as patch:
        patch.setattr(updates.Updates, "_parts", full)
        with pytest.raises(damo.OutOfSpaceError):
            predictor.apply_delta(first)
        check_same(answers_of(predictor), after_first)
        assert predictor.stats().deltas_applied == 1
    predictor.apply_delta(first)  # completes it
    check_same(answers_of(predictor), after_first)
    predictor.apply_delta(second)
    check_same(answers_of(predictor), training.answers())


def test_close_ends_a_delta_that_is_being_written(
    training: Training, predictor: damo.serving.Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, begun, go_on = updates.Updates._parts, threading.Event(), threading.Event()
    monkeypatch.setattr(updates, "_ROWS_AT_A_TIME", 5)

    def slow(self: Any, n: int) -> Iterator[slice]:
        for part in parts(self, n):
            yield part
            begun.set()
            assert go_on.wait(PATIENCE)

    monkeypatch.setattr(updates.Updates, "_parts", slow)
    training.step()
    with ThreadPoolExecutor(2) as threads:
        applied = threads.submit(predictor.apply_delta, training.delta())
        assert begun.wait(PATIENCE)
        closed = threads.submit(predictor.close)
        wait_until(predictor._updates._stopped.is_set)
        go_on.set()
        closed.result()
        with pytest.raises(damo.StoreClosedError):
            applied.result()
    with pytest.raises(damo.StoreClosedError):
        predictor.apply_delta(training.newest)


# ------------------------------------------------------------------ watching


def test_watching_applies_what_appears(
    training: Training, predictor: damo.serving.Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    """In order, though the second comes first; a damaged one and a half one do not disturb."""
    directory = training.path / "deltas"
    directory.mkdir()
    training.step()
    first = training.delta()
    training.step()
    second = training.delta()
    predictor.watch(directory, poll_seconds=0.01)
    damaged = shutil.copytree(first, training.path / "damaged")
    (damaged / "dense.onnx").write_bytes(b"")
    damaged = damaged.rename(directory / "delta-000000000000")
    (directory / "delta-half").mkdir()
    second.rename(directory / second.name)
    wait_until(lambda: "waiting for what comes before" in caplog.text and "refusing the delta" in caplog.text)
    first.rename(directory / first.name)
    wait_until(lambda: predictor.stats().deltas_applied == 2)
    check_same(answers_of(predictor), training.answers())
    training.step()
    training.newest = directory / second.name
    shutil.copytree(directory / first.name, training.path / "again").rename(directory / "delta-again")
    training.store.export_delta(directory / f"delta-{training.store.step:012}", since=training.newest)
    wait_until(lambda: predictor.stats().deltas_applied == 3)
    assert caplog.text.count("refusing the delta") == caplog.text.count("waiting for what comes before") == 1
    training.step()
    last = training.store.export_delta(
        training.path / f"delta-{training.store.step:012}", since=training.store.step - 1
    )
    copy = directory / last.name
    copy.mkdir()
    for file in sorted(last.iterdir(), reverse=True):  # delta.json first: whoever copies it does not know better
        shutil.copy(file, copy / file.name)
        time.sleep(0.02)
    wait_until(lambda: predictor.step == training.store.step)
    assert predictor.stats().deltas_applied == 4


def test_only_a_directory_can_be_watched(predictor: damo.serving.Predictor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        predictor.watch(tmp_path / "none")
    with pytest.raises(ValueError, match="poll_seconds must be positive"):
        predictor.watch(tmp_path, poll_seconds=0)


# ------------------------------------------------------------------ publishing


def test_a_publisher_and_a_watching_predictor_keep_in_step(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    directory = training.path / "deltas"
    publisher = damo.serving.DeltaPublisher(
        training.store,
        directory,
        since=training.path / "served",
        model=training.model,
        args=tuple(request_of(3).values()),
        every_steps=2,
        keep=2,
    )
    predictor.watch(directory, poll_seconds=0.01)
    published = []
    for number in range(1, 7):
        training.step()
        if (path := publisher.step()) is not None:
            published.append(path)
            assert path == directory / f"delta-{training.store.step:012}"
            wait_until(lambda: predictor.step == training.store.step)
            check_same(answers_of(predictor), training.answers())
        assert len(published) == number // 2
    assert publisher.deltas() == published[-2:]
    assert publisher.publish() is None  # nothing is new
    again = damo.serving.DeltaPublisher(training.store, directory, every_seconds=1e-9)
    training.step()
    path = again.step()
    assert path is not None
    assert Delta.read(published[-1]).id in Delta.read(path).line


def test_a_publisher_goes_back_with_its_store(
    training: Training, predictor: damo.serving.Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = damo.serving.DeltaPublisher(
        training.store,
        training.path / "deltas",
        since=training.path / "served",
        model=training.model,
        args=tuple(request_of(3).values()),
        every_steps=1,
        keep=3,
    )

    def step() -> Path:
        training.step()
        path = publisher.step()
        assert path is not None
        return path

    first = step()
    checkpoint = training.store.checkpoint()
    gone = [step(), step()]
    predictor.apply_delta(first)
    training.store.restore(checkpoint)
    assert publisher.publish() is None  # the store is where the first delta led
    assert "went back from step" in caplog.text
    # At a step that the other past had, too.
    second = step()
    assert second.name == f"{gone[0].name}.1"
    predictor.apply_delta(second)
    check_same(answers_of(predictor), training.answers())
    with pytest.raises(ValueError, match="does not follow"):
        predictor.apply_delta(gone[1])
    # What leads nowhere goes first.
    assert publisher.deltas() == [first, second, gone[1]]
    predictor.apply_delta(third := step())
    check_same(answers_of(predictor), training.answers())
    assert publisher.deltas() == [first, second, third]
    fourth = step()
    assert publisher.deltas() == [second, third, fourth]
    assert [path.name for path in sorted(map(Path, ("delta-4.10", "delta-4.2", "delta-4")), key=order_of)] == [
        "delta-4",
        "delta-4.2",
        "delta-4.10",
    ]


def test_a_publisher_says_that_its_state_is_forgotten(training: Training) -> None:
    publisher = damo.serving.DeltaPublisher(
        training.store, training.path / "deltas", since=training.path / "served", every_steps=1
    )
    training.step()
    assert publisher.step() is not None
    for number in range(65):
        training.step()
        training.store.checkpoint(training.path / f"checkpoint-{number}")
    with pytest.raises(ValueError, match="has forgotten its state of step"):
        publisher.publish()


def test_a_publisher_goes_back_to_where_it_began(training: Training, predictor: damo.serving.Predictor) -> None:
    served = training.path / "served"
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", since=served, every_steps=1)
    training.step()
    assert publisher.step() is not None
    training.store.restore(served)
    training.step()
    delta = publisher.step()
    assert delta is not None
    predictor.apply_delta(delta)
    assert predictor.step == training.store.step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs every_steps, every_seconds or both"),
        ({"every_steps": 0}, "every_steps must be positive, got 0"),
        ({"every_seconds": -1}, "every_seconds must be positive, got -1"),
        ({"every_steps": 1, "keep": 0}, "keep must be positive, got 0"),
        ({"every_steps": 1, "model": nn.Identity()}, "with a model needs args"),
    ],
)
def test_a_publisher_says_what_it_needs(store: Any, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        damo.serving.DeltaPublisher(store, tmp_path / "deltas", **options)


class Normed(nn.Module):
    """Of a layer and its batch norm torch.onnx makes one."""

    def __init__(self, store: damo.EmbeddingStore) -> None:
        super().__init__()
        self.embedding = damo.Embedding(4, store=store, optimizer={"name": "sgd", "gamma": 0.1})
        self.layers = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(ids).flatten(1))


def test_parameters_that_the_graph_holds_otherwise_are_exported_anew(store: Any, tmp_path: Path) -> None:
    model, ids = Normed(store), torch.arange(8).view(4, 2)
    train(model, (ids,))
    path = damo.serving.export(model, ids, tmp_path / "served")
    with pytest.raises(ValueError, match=r"the graph does not hold .* as they are: export it anew"):
        refresh_dense((path / "dense.onnx").read_bytes(), model)
    options = {"since": path, "model": model, "args": ids, "every_steps": 1}
    publisher = damo.serving.DeltaPublisher(store, tmp_path / "deltas", **options)
    with damo.serving.Predictor(path, memory_budget="64MiB") as predictor:
        for _ in range(2):
            train(model, (ids,))
            with torch.no_grad():
                model.layers[0].weight.add_(1.0)
                model.layers[1].running_mean.sub_(1.0)
            delta = publisher.step()
            assert delta is not None
            predictor.apply_delta(delta)
            with torch.no_grad():
                expected = model(ids).numpy()
            np.testing.assert_allclose(predictor.predict({"ids": ids})["output"], expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ pooling


@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    weighted=st.booleans(),
    mean=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_bags_are_pooled_to_the_bit_as_the_engine_does(
    lengths: list[int], weighted: bool, mean: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    rows = rng.choice([-1, -0.0, 1], (n, 5)).astype(np.float32) * rng.standard_normal((n, 5), dtype=np.float32)
    weights = rng.choice(np.float32([-1, 0, 0.3, 1, 7]), n) if weighted else None
    pooling = PoolingType.MEAN if mean else PoolingType.SUM
    table = EmbeddingBagConfig(name="t", embedding_dim=5, num_embeddings=9, feature_names=["a"], pooling=pooling)
    with small_store() as store:
        ebc = damo.EmbeddingBagCollection([table], is_weighted=weighted, store=store, **SGD).eval()
        store.table("t").set(torch.arange(n), torch.from_numpy(rows))
        features = KeyedJaggedTensor(
            keys=["a"],
            values=torch.arange(n),
            lengths=torch.tensor(lengths),
            weights=torch.from_numpy(weights) if weights is not None else None,
        )
        expected = ebc(features).values().numpy()
    got = pool(rows, np.array(lengths), weights, mean)
    np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))
