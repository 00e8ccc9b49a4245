"""Exported files have the rows that live, and no other."""

from pathlib import Path

import torch

import damo_torchrec as damo
from damo_torchrec.onnx import model_card
from publishing_model import ARGUMENTS, IDS, Model


def test_dead_rows_are_left_out(tmp_path: Path) -> None:
    with damo.EmbeddingStore(tmp_path / "store", memory_budget="64MiB") as store:
        model = Model(store, expire=[damo.Idle(steps=2)])
        for last in (IDS, 3, 3, 3, 3):
            ids = torch.arange(last)
            features = type(ARGUMENTS[0])(["f"], ids, lengths=torch.ones(last, dtype=torch.int64))
            model(features).sum().backward()
        assert len(store.table("t")) == 3
        model.eval()
        damo.onnx.export(model, ARGUMENTS, tmp_path / "ranker")  # which compares answers
        assert model_card(tmp_path / "ranker")["tables"]["t"]["rows"] == 3
