"""Deltas that appear in a directory are applied."""

import gc
import os
import shutil
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import damo_torchrec as damo
from damo_torchrec.serving.watcher import Watcher
from forging import forged_copy
from served_training import Training, answers_of, check_same, wait_until


def test_a_closed_predictor_goes_without_the_garbage_collector(training: Training, tmp_path: Path) -> None:
    training.step()
    delta = training.delta()
    (tmp_path / "deltas").mkdir()
    shutil.copytree(delta, tmp_path / "deltas" / delta.name)
    gc.collect()
    gc.disable()
    try:
        predictor = damo.serving.Predictor(training.path / "served", memory_budget="64MiB")
        predictor.watch(tmp_path / "deltas", poll_seconds=0.01)
        gone = weakref.ref(predictor)
        wait_until(lambda: gone().stats().deltas_applied == 1)
        predictor.close()
        del predictor
        assert gone() is None
    finally:
        gc.enable()


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


def pipe(path: Path) -> None:
    os.mkfifo(path)


def delta_json_is_a_pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "delta.json")


def delta_json_is_huge(path: Path) -> None:
    path.mkdir()
    (path / "delta.json").touch()
    os.truncate(path / "delta.json", 2**40)


def delta_json_is_a_directory(path: Path) -> None:
    (path / "delta.json").mkdir(parents=True)


def archive_for_an_array(path: Path) -> None:
    np.savez(path / "archive.npz", np.zeros(1))
    (path / "archive.npz").rename(next(path.glob("*.ids.npy")))


ODD = {
    "file": lambda path: path.write_bytes(b"x"),
    "directory": lambda path: path.mkdir(),
    "pipe": pipe,
    "link": lambda path: path.symlink_to("/"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "pipe in it": delta_json_is_a_pipe,
    "huge": delta_json_is_huge,
    "directory in it": delta_json_is_a_directory,
    "digits": lambda path: (path.parent / ("0" * 200)).mkdir(),
    "bytes": lambda path: os.mkdir(os.fsencode(path) + b"\xff"),
}


def test_odd_entries_stop_nothing_and_are_told_once_and_counted(
    training: Training, predictor: damo.serving.Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    directory = training.path / "deltas"
    directory.mkdir()
    for kind, make in ODD.items():
        make(directory / f"000 {kind}")
    training.step()
    good = training.delta()
    forged_copy(good, directory / "001 forged", archive_for_an_array)
    good.rename(directory / good.name)
    predictor.watch(directory, poll_seconds=0.01)
    wait_until(lambda: predictor.stats().deltas_applied == 1)
    check_same(answers_of(predictor), training.answers())
    assert predictor.stats().passed_over == len(ODD) + 1
    looks = len(caplog.records)
    training.newest = directory / good.name
    training.step()
    more = training.delta()
    shutil.rmtree(directory / "000 directory")
    more.rename(directory / more.name)
    wait_until(lambda: predictor.stats().deltas_applied == 2 and predictor.stats().passed_over == len(ODD))
    told = [record for record in caplog.records[looks:] if record.name.endswith("watcher")]
    assert told == []


def test_whatever_a_delta_raises_those_after_it_are_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    errors: dict[str, Exception] = {
        "1": AttributeError("unexpected"),
        "2": OSError("unreadable"),
        "3": MemoryError(),
        "4": damo.DamoError("disk"),
        "5": RecursionError(),
    }
    calls: list[str] = []

    def apply(path: Path) -> None:
        calls.append(path.name)
        if path.name in errors:
            raise errors[path.name]

    for name in (*errors, "6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "delta.json").touch()
    watcher = Watcher(tmp_path, 0.01, apply, lambda: 0)
    wait_until(lambda: calls.count("2") > 2)
    watcher.stop()
    watcher.join()
    assert calls[:6] == [*errors, "6"]
    assert [calls.count(name) for name in "1356"] == [1, 1, 1, 1]  # but what the system refuses is tried again
    assert watcher.passed_over == len(errors)
    assert caplog.text.count("refusing the delta") == 3
    assert caplog.text.count("will try again") == 2
