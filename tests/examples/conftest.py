"""Fixtures of the tests of examples."""

from typing import Any

import pytest
import torch

import damo_torchrec as damo
from serve_cases import KEYS, Clicks, body, expected_answer
from support import kjt, small_store


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, and two checkpoints of it: ``one`` and ``two``, which has other weights."""
    path = tmp_path_factory.mktemp("served")
    with small_store(path / "store") as store:
        model = Clicks(store)
        for table in store.tables().values():
            table.set(torch.arange(-9, 9), torch.randn(18, 4))
        args = (torch.ones(2, 1), kjt({key: [[1], [2]] for key in KEYS}, [1.0] * 4))
        damo.serving.export(model, args, path / "one")
        answers = [expected_answer(model, body(3))]
        with torch.no_grad():
            model.layer.weight.add_(1.0)
        damo.serving.export(model, args, path / "two")
        answers.append(expected_answer(model, body(3)))
        yield model.eval(), path, answers
