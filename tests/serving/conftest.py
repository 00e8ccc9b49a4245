"""What is served: a model as it is, or one whose training goes on."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
from served_models import exported, pooled_request, predictor_of
from served_training import Everything, Training, request_of
from serving_cases import Pooled, train
from support import small_store


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A weighted model, and a checkpoint to serve it from."""
    path = tmp_path_factory.mktemp("pooled")
    with small_store(path / "store") as store:
        model = Pooled(store, weighted=True)
        yield model, exported(model, pooled_request, path / "checkpoint")


@pytest.fixture
def pooled_predictor(pooled: Any) -> Any:
    with predictor_of(pooled[1]) as opened:
        yield opened


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
