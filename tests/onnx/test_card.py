"""What an exported model says of itself."""

import json
from pathlib import Path

import onnxruntime
from torch import nn

import damo_torchrec as damo
from exported_models import REQUEST


def test_the_model_card(model: nn.Module, store: damo.EmbeddingStore, tmp_path: Path) -> None:
    damo.onnx.export(model, REQUEST, tmp_path / "m", dtype="float16", max_length={"a": 9}, min_count=1)
    card = damo.onnx.model_card(tmp_path / "m")
    assert (card["kind"], card["store"], card["step"]) == ("full", str(store.path), store.step)
    assert card["features"] == {"features": {"keys": ["a", "b", "c"], "weighted": False}}
    assert {name: table["rows"] for name, table in card["tables"].items()} == {
        name: len(table) for name, table in store.tables().items()
    }
    assert card["options"]["dtype"] == "float16"
    assert card["options"]["max_length"] == {"a": 9}
    session = onnxruntime.InferenceSession(str(tmp_path / "m" / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["damo_torchrec"]) == card
