"""Making a checkpoint to serve."""

from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
from served_models import groups_request, predictor_of
from serving_cases import Groups, Pooled


def test_a_failed_export_leaves_nothing(store: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="args do not fit"):
        damo.serving.export(Pooled(store, weighted=False), (), tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_without_a_path_the_checkpoint_is_in_the_store(store: Any) -> None:
    path = damo.serving.export(Groups(store), torch.ones(2, 3, dtype=torch.int64))
    assert path.parent == store.path / "checkpoints"
    with predictor_of(path) as predictor:
        assert predictor.predict(groups_request(4))["output"].shape == (4, 1)
