"""Deltas that appear in a directory are applied."""

import gc
import os
import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import damo_torchrec as damo
from damo_torchrec.checkpoints.delta import DeltaManifest
from damo_torchrec.serving.place import Following, Place
from damo_torchrec.serving.watcher import Watcher
from forged_lines import make_delta
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


def place_at(state: int) -> Place:
    return Place(frozenset([f"{state:032x}"]), frozenset([f"{state:032x}"]), state, state)


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
        make_delta(tmp_path, name, [0], to=12 - int(name))
    start, end = place_at(0), place_at(6)
    watcher = Watcher(tmp_path, 0.01, apply, lambda: replace(start, past=end.past) if "6" in calls else start)
    wait_until(lambda: calls.count("2") > 2)
    watcher.stop()
    watcher.join()
    assert calls[:6] == [*errors, "6"]
    assert [calls.count(name) for name in "1356"] == [1, 1, 1, 1]  # but what the system refuses is tried again
    assert watcher.passed_over == len(errors)
    assert caplog.text.count("refusing the delta") == 3
    assert caplog.text.count("will try again") == 2


def test_a_delta_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_delta(tmp_path, "delta-1", [0], 1)
    calls: list[str] = []

    def apply(path: Path) -> None:
        calls.append(path.name)
        if len(calls) == 1:
            shutil.rmtree(path)
            make_delta(tmp_path, "delta-1", [0], 1, sequence=9)
            raise damo.CorruptionError("rows of one delta, and the manifest of another")

    start, end = place_at(0), place_at(1)
    watcher = Watcher(tmp_path, 0.01, apply, lambda: replace(start, past=end.past) if len(calls) > 1 else start)
    wait_until(lambda: len(calls) > 1)
    watcher.stop()
    watcher.join()
    assert watcher.passed_over == 0
    assert "refusing" not in caplog.text


def follow(directory: Path, state: int) -> tuple[list[str], Following]:
    """What a watcher applies from a state on, and how far that is behind then."""
    applied: list[str] = []
    place = place_at(state)

    def apply(path: Path) -> None:
        nonlocal place
        manifest = DeltaManifest.read(path)
        assert place.leads_on(manifest)
        place = place.after(manifest)
        applied.append(path.name)

    watcher = Watcher(directory, 0.001, apply, lambda: place)
    looks = watcher.looks
    wait_until(lambda: watcher.looks > looks + 1)
    watcher.stop()
    watcher.join()
    return applied, watcher.following


def test_the_shortest_way_to_the_newest_delta_is_taken(tmp_path: Path) -> None:
    make_delta(tmp_path, "delta-2", [1], 2)
    make_delta(tmp_path, "delta-3", [2], 3)
    make_delta(tmp_path, "delta-4", [3], 4)
    assert follow(tmp_path, 1) == (["delta-2", "delta-3", "delta-4"], Following(4))
    make_delta(tmp_path, "delta-3.1", [1, 2], 3)
    assert follow(tmp_path, 1) == (["delta-3.1", "delta-4"], Following(4))
    assert follow(tmp_path, 3) == (["delta-4"], Following(4))


def test_what_leads_nowhere_is_not_taken_where_there_is_another_way(tmp_path: Path) -> None:
    make_delta(tmp_path, "delta-5", [1], 5)
    make_delta(tmp_path, "delta-2", [1], 2, sequence=6)
    make_delta(tmp_path, "delta-3", [2], 3, sequence=7)
    assert follow(tmp_path, 1) == (["delta-2", "delta-3"], Following(3))
    applied, behind = follow(tmp_path, 5)
    assert (applied, behind.waiting, behind.newest_step) == ([], 2, 3)
    assert behind.reason is not None
    make_delta(tmp_path, "delta-4", [3, 5], 4, sequence=8, abandoned=1)
    assert follow(tmp_path, 5) == (["delta-4"], Following(4))


def test_a_watcher_says_that_deltas_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_delta(tmp_path, "delta-7", [6], 7)
    make_delta(tmp_path, "delta-8", [7], 8)
    applied, behind = follow(tmp_path, 1)
    assert (applied, behind.newest_step, behind.waiting, behind.refused) == ([], 8, 2, 0)
    assert behind.reason is not None
    assert "missing" in behind.reason
    assert caplog.text.count("waiting for what comes before") == 1
    assert follow(tmp_path, 9) == ([], Following(9))  # an export that is newer
