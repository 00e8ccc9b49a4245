"""Rows that are forgotten while servers follow a training: they hear of it, and so do those that begin anew."""

import os
import shutil

import numpy as np
import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import Delta
from damo_torchrec.checkpoints.exported import Exported
from damo_torchrec.checkpoints.manifest import Manifest
from forgotten import Traces
from served_training import Training, answers_of, check_same, request_of

PERSON = [1, 3, -7]


@pytest.fixture(autouse=True)
def _exported(training: Training) -> None:
    """The store knows where its export lies, which was copied with it."""
    Exported(Manifest.read(training.path / "served").id, str(training.path / "served")).write(training.store.path)


def publisher_of(training: Training, **options: object) -> damo.serving.DeltaPublisher:
    return damo.serving.DeltaPublisher(
        training.store,
        training.path / "deltas",
        since=training.path / "served",
        model=training.model,
        args=tuple(request_of(3).values()),
        every_steps=1,
        **options,
    )


def wanted(training: Training) -> dict[str, list[int]]:
    return dict.fromkeys(training.store.tables(), PERSON)


def note(training: Training, traces: Traces) -> None:
    for table in training.store.tables().values():
        there = [i for i in PERSON if bool(table.contains([i]))]
        if there:
            traces.note(table, there)


def test_servers_that_follow_and_servers_that_begin_anew_answer_as_the_store_does(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    traces = Traces()
    publisher = publisher_of(training, keep=4)
    note(training, traces)
    paths = []
    for _ in range(6):
        training.step()
        note(training, traces)
        paths.append(publisher.publish())
        predictor.apply_delta(paths[-1])
        note(training, traces)
    places = [training.path / "served", training.path / "deltas", training.path / "store"]
    assert {path for path in places if traces.files(path)} == {*places}
    deltas = {path: Delta.read(path) for path in publisher.deltas()}
    before = {path: {n: np.array(t.ids) for n, t in d.tables.items()} for path, d in deltas.items()}
    report = training.store.forget(wanted(training), exports=training.path / "served", deltas=training.path / "deltas")
    assert {left.what for left in report.remaining} == {"file", "working copy"}, report  # the predictor's
    assert traces.files(*places) == []
    for path, delta in deltas.items():
        after = Delta.read(path)
        assert (after.id, after.base, after.line) == (delta.id, delta.base, delta.line)
        for name, table in after.tables.items():
            gone = np.intersect1d(before[path][name], PERSON)
            assert np.array_equal(table.ids, np.setdiff1d(before[path][name], gone))
            assert np.isin(gone, table.deleted).all()
    path = publisher.publish()
    assert path is not None
    predictor.apply_delta(path)
    check_same(answers_of(predictor), training.answers())
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB", num_threads=2) as new:
        for delta in publisher.deltas():
            new.apply_delta(delta)
        check_same(answers_of(new), training.answers())
    predictor.close()
    assert traces.files(training.path) == []


def test_what_servers_begin_from_is_named_where_it_is_not_shown(training: Training) -> None:
    report = training.store.forget(wanted(training), dry_run=True)
    assert [left.path for left in report.remaining if left.what == "export"] == [training.path / "served"]


def test_a_server_that_began_from_a_checkpoint_hears_of_it_after_the_store_went_back_there(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    """The rewritten checkpoint says that the rows are gone: its state is that from which servers began with them."""
    checkpoint = training.store.checkpoint()
    state = Manifest.read(checkpoint).id
    publisher = publisher_of(training)
    first = publisher.publish()
    if first is not None:
        predictor.apply_delta(first)
    training.store.forget(wanted(training), exports=training.path / "served", deltas=training.path / "deltas")
    assert Manifest.read(checkpoint).id == state
    training.store.restore(checkpoint)
    path = publisher.publish()
    assert path is not None
    predictor.apply_delta(path)
    check_same(answers_of(predictor), training.answers())
    assert not any(bool(table.contains(PERSON).any()) for table in training.store.tables().values())


def test_a_working_copy_in_use_is_named_and_one_that_was_left_is_removed(
    training: Training, predictor: damo.serving.Predictor
) -> None:
    (copy,) = training.path.glob(".served.serving-*")
    shutil.copytree(copy, training.path / "left")
    (training.path / "left" / "LOCK").unlink()
    copies = [copy, training.path / "left"]
    report = training.store.forget(wanted(training), exports=training.path / "served", working_copies=copies)
    assert {left.path for left in report.remaining if left.what == "working copy"} == {copy}
    assert not (training.path / "left").exists()
    answers_of(predictor)
    predictor.close()
    with damo.serving.Predictor(training.path / "served", memory_budget="64MiB", num_threads=2):
        (copy,) = training.path.glob(".served.serving-*")  # made of what has been rewritten
        again = training.store.forget(wanted(training), exports=training.path / "served", working_copies=copy)
        assert again.complete, again


@pytest.mark.parametrize("name", ["served", "deltas"])
def test_what_cannot_be_written_is_named(training: Training, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = publisher_of(training)
    training.step()
    publisher.publish()
    real = os.rename

    def refusing(source: object, target: object) -> None:
        if name in str(target).split(str(training.path))[-1]:
            raise PermissionError(30, "Read-only file system", str(target))
        real(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    report = training.store.forget(wanted(training), exports=training.path / "served", deltas=training.path / "deltas")
    refused = [left for left in report.remaining if "Read-only file system" in left.reason]
    assert refused
    monkeypatch.setattr(os, "rename", real)
    again = training.store.forget(wanted(training), exports=training.path / "served", deltas=training.path / "deltas")
    assert again.complete
    assert not torch.cat([t.contains(PERSON) for t in training.store.tables().values()]).any()
