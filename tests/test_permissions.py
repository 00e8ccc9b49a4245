"""What is made on disk has the modes that the umask gives it: no more, and no less."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
from serve_cases import KEYS, Clicks
from support import kjt, small_store


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_modes(top: Path, umask: int) -> list[str]:
    """What is not as the umask has it, of a directory and all below."""
    wrong = []
    for path in [top, *top.rglob("*")]:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:  # RocksDB has replaced it meanwhile
            continue
        expected = (0o777 if stat.S_ISDIR(mode) else 0o666) & ~umask
        if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != expected:
            wrong.append(f"{path.relative_to(top)}: {stat.S_IMODE(mode):o}")
    return wrong


def train(model: Clicks, args: tuple[Any, ...]) -> None:
    model.train()
    model(*args).sum().backward()


def test_all_that_is_made_has_the_umasks_modes(umask: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    args = (torch.ones(2, 1), kjt({key: [[1], [2]] for key in KEYS}, [1.0] * 4))
    with small_store(made / "store") as store:
        model = Clicks(store)
        train(model, args)
        damo.save_model(model)
        damo.save_model(model, made / "saved")
        store.checkpoint(made / "copied", link=False)
        store.checkpoint(made / "linked")
        manager = damo.CheckpointManager(made / "managed", every_steps=1)
        train(model, args)
        manager.step(model, step=1)
        manager.wait()
        damo.onnx.export(model, args, made / "onnx")
        damo.serving.export(model, args, made / "served")
        publisher = damo.serving.DeltaPublisher(store, made / "deltas", model=model, args=args, every_steps=1)
        train(model, args)
        assert publisher.publish() is not None
        store.export_delta(made / "delta", since=made / "served")
        assert wrong_modes(made, umask) == []
        with damo.serving.Predictor(made / "served", memory_budget="64MiB") as predictor:
            predictor.apply_delta(made / "delta")
            assert [path for path in made.iterdir() if ".serving-" in path.name]
            assert wrong_modes(made, umask) == []
    with damo.EmbeddingStore(made / "restored", memory_budget="64MiB", restore=made / "saved") as store:
        damo.load_model(made / "saved", Clicks(store))
    assert wrong_modes(made, umask) == []


def test_a_store_without_a_path_has_them_too(umask: int) -> None:
    with damo.EmbeddingStore(memory_budget="64MiB") as store:
        assert wrong_modes(Path(store.path), umask) == []


def test_a_repaired_checkpoint_has_them_too(umask: int, tmp_path: Path) -> None:
    from damo_torchrec.cli import main

    with small_store(tmp_path / "store") as store:
        model = Clicks(store)
        train(model, (torch.ones(2, 1), kjt({key: [[1], [2]] for key in KEYS}, [1.0] * 4)))
    main.main(["repair", str(tmp_path / "store"), str(tmp_path / "repaired")])
    assert wrong_modes(tmp_path / "repaired", umask) == []
