"""Publishing deltas, every so often and wherever the training goes."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.serving.published import order_of
from served_training import Training, answers_of, check_same, request_of, wait_until


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
    for path in (first, *gone):
        predictor.apply_delta(path)
    training.store.restore(checkpoint)
    # At a step that the other past had, too.
    training.step()
    second = publisher.publish()
    assert second is not None
    assert second.name == f"{gone[0].name}.1"
    assert "went back behind it" in caplog.text
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB") as other:
        for path in (first, second):
            other.apply_delta(path)
        check_same(answers_of(other), training.answers())
    predictor.apply_delta(second)
    check_same(answers_of(predictor), training.answers())
    assert [*publisher.directory.iterdir()] == publisher.deltas() == [first, second]
    predictor.apply_delta(step())
    check_same(answers_of(predictor), training.answers())
    assert [path.name for path in sorted(map(Path, ("delta-4.10", "delta-4.2", "delta-4")), key=order_of)] == [
        "delta-4",
        "delta-4.2",
        "delta-4.10",
    ]


def test_going_back_alone_is_published(training: Training, predictor: damo.serving.Predictor) -> None:
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", every_steps=1)
    checkpoint = training.store.checkpoint()
    training.step()
    predictor.apply_delta(publisher.publish())
    training.store.restore(checkpoint)
    expected = training.answers()
    back = publisher.publish()
    assert back is not None
    predictor.apply_delta(back)
    assert [answer["pooled"].tolist() for answer in answers_of(predictor)] == [a["pooled"].tolist() for a in expected]
    assert publisher.publish() is None


def test_a_publisher_remembers_its_state_over_many_checkpoints(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", every_steps=1)
    training.step()
    predictor.apply_delta(publisher.publish())
    for number in range(70):
        training.step()
        training.store.checkpoint(training.path / f"checkpoint-{number}")
    again = damo.serving.DeltaPublisher(training.store, training.path / "deltas", every_steps=1)
    predictor.apply_delta(again.publish())
    assert predictor.step == training.store.step


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


def test_a_publisher_removes_deltas_alone(training: Training) -> None:
    directory = training.path / "deltas"
    directory.mkdir()
    precious = training.path / "precious"
    precious.mkdir()
    for name in ("delta-notes", "delta-000000000001", "delta-1", "other"):
        (directory / name).mkdir()
    (directory / "delta-000000000002").symlink_to(precious)
    publisher = damo.serving.DeltaPublisher(
        training.store, directory, since=training.path / "served", every_steps=1, keep=1
    )
    before = set(directory.iterdir())
    for _ in range(3):
        training.step()
        publisher.step()
    (newest,) = publisher.deltas()
    assert set(directory.iterdir()) == {*before, newest}
    assert precious.is_dir()
