"""Checkpoints of models to serve, predictors that serve them, and requests."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import damo_torchrec as damo
from serving_cases import random_features, train

BATCHES = (0, 1, 2, 33, 300)


def pooled_request(batch: int, weighted: bool = True) -> dict[str, Any]:
    return {"features": random_features("dbac", batch, weighted=weighted, seed=batch)}


def sequences_request(batch: int) -> dict[str, Any]:
    return {"features": random_features("dac", batch, seed=batch)}


def towers_request(batch: int) -> dict[str, Any]:
    return {"query": random_features("xu", batch, seed=batch), "item": random_features("yi", batch, seed=batch + 1)}


def shared_request(batch: int) -> dict[str, Any]:
    return {"query": random_features("xy", batch, seed=batch), "item": random_features("yx", batch, seed=batch + 1)}


def groups_request(batch: int) -> dict[str, Any]:
    return {"ids": torch.from_numpy(np.random.default_rng(batch).integers(-20, 20, (batch, 3)))}


def inputs(**changes: Any) -> dict[str, Any]:
    """Two samples with one id for each of four keys, and what is wrong with them."""
    good = {"values": list(range(8)), "lengths": [[1, 1]] * 4, "weights": [1.0] * 8}
    return {f"features.{name}": value for name, value in (good | changes).items() if value is not None}


def exported(model: nn.Module, request: Any, path: Path) -> Path:
    train(model, *(tuple(request(size).values()) for size in (16, 17, 18)))
    return damo.serving.export(model, tuple(request(3).values()), path)


def predictor_of(path: Path, **options: Any) -> damo.serving.Predictor:
    return damo.serving.Predictor(path, memory_budget="64MiB", num_threads=2, **options)
