"""A predictor follows a training, delta by delta, and refuses what does not follow."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.serving import updates
from damo_torchrec.store.delta_writer import Additions, write_delta
from served_training import PATIENCE, Training, answers_of, check_same, wait_until
from support import small_store


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


def test_a_delta_says_what_the_means_are_and_one_that_does_not_is_refused(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    training.step()
    predictor.apply_delta(training.delta())
    tables = json.loads((training.newest / "delta.json").read_text())
    assert tables["format_version"] == 2
    means = {name: table.get("mean") for name, table in tables["delta"]["tables"].items()}
    assert {name for name, mean in means.items() if mean} == {"sums", "sequence"}
    assert means["sums"] == training.store.table("sums").mean().tolist()
    answers = answers_of(predictor)
    training.store.close()
    with small_store(training.path / "store") as store:  # without the model, whose options nobody knows
        path = store.export_delta(training.path / "without", since=training.newest)
    assert json.loads((path / "delta.json").read_text())["format_version"] == 1
    with pytest.raises(damo.SchemaMismatchError, match=r"'se.*' read the mean of its rows, which .*without lacks"):
        predictor.apply_delta(path)
    check_same(answers_of(predictor), answers)


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
            write_delta(training.store.session, path, training.newest, Additions({"dense.onnx": content}))
        with pytest.raises(error, match=message):
            predictor.apply_delta(path)
        check_same(answers_of(predictor), start)


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
