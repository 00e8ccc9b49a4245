"""Deltas that appear in a directory are applied."""

import shutil
import time
from pathlib import Path

import pytest

import damo_torchrec as damo
from served_training import Training, answers_of, check_same, wait_until


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
