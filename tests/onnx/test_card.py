"""What an exported model says of itself."""

import hashlib
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
    data = [path for path in (tmp_path / "m").rglob("*") if path.is_file() and path.suffix != ".onnx"]
    assert card["files"] == {
        str(path.relative_to(tmp_path / "m")): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in data
    }
    assert data
    graph = (tmp_path / "m" / "model.onnx").read_bytes()
    assert graph.count(card["graph_sha256"].encode()) == 1
    unsealed = graph.replace(card["graph_sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(unsealed).hexdigest() == card["graph_sha256"]
    session = onnxruntime.InferenceSession(str(tmp_path / "m" / "model.onnx"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["damo_torchrec"]) == card
