"""A graph answers as its model does whatever the size of a batch, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

import damo_torchrec as damo
from damo_torchrec.onnx.trial import DifferentAnswerError
from exported_models import GIVEN, Given


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda e, d: torch.cat([part * 2 for part in e.split(4)]), "'features.lengths'|'dense'.*at least 4"),
        (lambda e, d: e * 0 if d.shape[0] > 100 else e, "at most 100"),
        (lambda e, d: e / e.norm() if e.shape[0] > 8 else e, "at most 8"),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_sizes_that_the_graph_is_not_made_for_are_refused(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any, message: str, verify: bool
) -> None:
    with pytest.raises(ValueError, match=message):
        damo.onnx.export(Given(store, outputs), GIVEN, tmp_path / "m", verify=verify)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("outputs", "size"),
    [
        (lambda e, d: e + 2 if d.shape[0] == 1 else e, 1),
        (lambda e, d: e + 2 if d.shape[0] == 2 else e, 2),
        (lambda e, d: e[:1] if d.shape[0] == 3 else e, 3),
    ],
)
@pytest.mark.parametrize("dense_only", [False, True])
def test_graphs_that_answer_other_batches_otherwise_are_refused(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any, size: int, dense_only: bool
) -> None:
    with pytest.raises(DifferentAnswerError, match=f"with a batch of {size} of the samples"):
        damo.onnx.export(Given(store, outputs), GIVEN, tmp_path / "m", dense_only=dense_only)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "outputs", [lambda e, d: e.topk(5, 0).values, lambda e, d: e.squeeze(), lambda e, d: e / d.shape[0]]
)
def test_sizes_that_the_model_itself_does_not_take_are_no_fault(
    store: damo.EmbeddingStore, tmp_path: Path, outputs: Any
) -> None:
    damo.onnx.export(Given(store, outputs), GIVEN, tmp_path / "m")
