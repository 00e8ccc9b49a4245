"""Publishing deltas, every so often and wherever the training goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.checkpoints.temporary_directory import mark_temporary
from damo_torchrec.serving.published import order_of
from mixed_run import collection, update
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


def test_edits_and_dense_weights_alone_are_published(training: Training, predictor: damo.serving.Predictor) -> None:
    publisher = damo.serving.DeltaPublisher(
        training.store,
        training.path / "deltas",
        model=training.model,
        args=tuple(request_of(3).values()),
        every_steps=1,
    )

    def check_published() -> None:
        path = publisher.step()
        assert path is not None
        predictor.apply_delta(path)
        check_same(answers_of(predictor), training.answers())
        assert publisher.publish() is None

    training.step()
    check_published()
    training.store.table("sums").delete(torch.arange(-60, 60, 2))
    check_published()
    training.store.table("sums").set(torch.arange(-60, 60, 3), torch.ones(40, 4))
    check_published()
    with torch.no_grad():
        training.model.layer.bias.add_(1)
    check_published()
    again = damo.serving.DeltaPublisher(
        training.store,
        training.path / "deltas",
        model=training.model,
        args=tuple(request_of(3).values()),
        every_steps=1,
    )
    assert again.publish() is None  # though it has not published that itself


@pytest.mark.parametrize("save_first", [True, False])
def test_a_job_of_every_day_keeps_servers_moving(training: Training, save_first: bool) -> None:
    """Restored from a manager's checkpoint, it does not know what came after that, which has the same rows."""
    training.store.close()
    deltas = training.path / "deltas"
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB", num_threads=1) as predictor:
        for _ in range(3):
            with damo.EmbeddingStore(training.path / "store", memory_budget="64MiB") as store:
                day = Training(store, type(training.model)(store), training.path, training.path)
                manager = damo.CheckpointManager(training.path / "saved", every_steps=1000, keep=2)
                manager.restore(day.model)
                publisher = damo.serving.DeltaPublisher(store, deltas, every_steps=1)
                day.step()
                path = None if save_first else publisher.publish()
                with manager:
                    manager.save(day.model, store.step)
                predictor.apply_delta(path or publisher.publish())
                expected = [answer["pooled"].tolist() for answer in day.answers()]
                assert [answer["pooled"].tolist() for answer in answers_of(predictor)] == expected
    assert len(list(deltas.iterdir())) == 3


def test_a_new_server_follows_what_was_folded(training: Training, predictor: damo.serving.Predictor) -> None:
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", every_steps=1, keep=3)
    for number in range(8):
        training.step()
        path = publisher.step()
        assert path in publisher.deltas()
        assert len(publisher.deltas()) <= 3
        if number < 2:  # and is stopped for a while
            predictor.apply_delta(path)
    expected = [answer["pooled"].tolist() for answer in training.answers()]
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB") as new:
        for server in (new, predictor):
            server.watch(training.path / "deltas", poll_seconds=0.01)
            wait_until(lambda server=server: server.step == training.store.step)
            assert [answer["pooled"].tolist() for answer in answers_of(server)] == expected
            assert server.following.reason is None


def test_what_a_killed_publisher_left_is_removed(training: Training) -> None:
    left = training.path / "deltas" / ".delta-000000000001.1.0.damo-staged"
    (left / "contents").mkdir(parents=True)
    mark_temporary(left)
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", every_steps=1)
    assert [*publisher.directory.iterdir()] == []


def test_what_servers_begin_from_is_led_back_from_while_it_is_there(training: Training) -> None:
    before = training.store.checkpoint(training.path / "before")
    training.step()
    exported = training.store.checkpoint(training.path / "exported")
    training.store.restore(before)
    publisher = damo.serving.DeltaPublisher(training.store, training.path / "deltas", since=exported, every_steps=1)
    back = publisher.publish()
    assert back is not None
    assert Delta.read(back).line == [Manifest.read(before).id, Manifest.read(exported).id]
    assert publisher.publish() is None
    with damo.EmbeddingStore(exported, read_only=True) as store:
        there = {name: {*table.to_torch()[0].tolist()} for name, table in store.tables().items()}
    for name, table in Delta.read(back).tables.items():
        now = {*training.store.table(name).to_torch()[0].tolist()}
        assert there[name] - now <= {*table.deleted.tolist()}


def test_a_publisher_refuses_to_begin_from_another_store(training: Training) -> None:
    with damo.EmbeddingStore(training.path / "other", memory_budget="64MiB") as store:
        foreign = store.checkpoint(training.path / "foreign")
    with pytest.raises(ValueError, match="Export the model anew"):
        damo.serving.DeltaPublisher(training.store, training.path / "deltas", since=foreign, every_steps=1)


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


def test_servers_need_a_new_export_where_a_table_is_gone(training: Training) -> None:
    update(collection(training.store, "spare"), {"spare": [[1]]})
    args = tuple(request_of(3).values())
    damo.serving.export(training.model, args, training.path / "with")
    publisher = damo.serving.DeltaPublisher(
        training.store, training.path / "deltas", model=training.model, args=args, every_steps=1
    )
    training.step()
    assert publisher.publish() is not None
    training.store.drop_table("spare")
    with pytest.raises(ValueError, match=r"table 'spare' was dropped\. Export the model anew"):
        publisher.publish()
    damo.serving.export(training.model, args, training.path / "without")
    with damo.serving.Predictor(training.path / "without") as predictor:
        training.step()
        path = publisher.publish()
        assert path is not None
        predictor.apply_delta(path)
        check_same(answers_of(predictor), training.answers())


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
