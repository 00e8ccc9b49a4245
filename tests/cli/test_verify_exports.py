"""`damo-torchrec verify` of exported models and deltas."""

import re

import onnx
import onnx.parser
import pytest

import damo_torchrec as damo
from damage import flip
from exported_models import REQUEST
from serving_cases import Pooled, train
from support import small_store


@pytest.fixture
def published(tmp_path):
    """An exported model, and two deltas."""
    with small_store(tmp_path / "store") as store:
        model = Pooled(store, weighted=False)
        train(model, (REQUEST,))
        store.checkpoint()
        damo.onnx.export(model, REQUEST, tmp_path / "exported")
        publisher = damo.serving.DeltaPublisher(store, tmp_path / "deltas", every_steps=1)
        for _ in range(2):
            train(model, (REQUEST,))
            publisher.step()
    return tmp_path


def test_verify_knows_deltas(published, call):
    deltas = sorted((published / "deltas").iterdir())
    assert call("verify", published / "deltas") == (0, ["2 of 2 deltas are sound"], "")
    assert call("verify", deltas[0]) == (0, ["1 of 1 deltas are sound"], "")
    file = max((file for file in deltas[1].iterdir() if file.suffix == ".npy"), key=lambda file: file.stat().st_size)
    flip(file, 200)
    status, lines, err = call("verify", published / "deltas")
    assert (status, err, lines[1:]) == (1, "", ["1 of 2 deltas are sound"])
    assert re.fullmatch(rf"{deltas[1]}: expected a delta as it was written, found {file} is damaged: .*", lines[0])


def test_verify_knows_exported_models(published, call):
    graph = published / "exported" / "model.onnx"
    for path in (graph, graph.parent):
        assert call("verify", path) == (0, [f"{graph}: sound"], "")
    rows = max(graph.parent.glob("model.data-*/*"), key=lambda file: file.stat().st_size)
    flip(rows, 9)
    content = bytearray(graph.read_bytes())
    at = content.index(b"EmbeddingBagMeans")
    content[at : at + 17] = b"EmbeddingBagSums!"
    graph.write_bytes(content)
    status, lines, err = call("verify", graph.parent)
    assert (status, err, lines[-1]) == (1, "", f"{graph}: damaged")
    assert any(line.startswith(f"{graph}: expected the graph that was exported") for line in lines)
    assert any(line.startswith(f"{rows}: expected the SHA-256") for line in lines)
    rows.unlink()
    _, lines, _ = call("verify", graph.parent)
    assert any(line.startswith(f"{rows}: expected ") and line.endswith("found none") for line in lines)


def test_verify_says_what_values_of_a_graph_the_card_does_not_name(published, call):
    graph = published / "exported" / "model.onnx"
    (graph.parent / "more").write_bytes(b"\0" * 4)
    proto = onnx.load(graph, load_external_data=False)
    tensor = proto.graph.initializer.add(name="more", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="more")
    graph.write_bytes(proto.SerializeToString())
    status, lines, _ = call("verify", graph)
    assert status == 1
    assert f"{graph.parent / 'more'}: expected no file that the card does not name, found values of the graph" in lines


def test_verify_of_a_graph_that_is_no_export_is_wrong_usage(tmp_path, call):
    text = '<ir_version: 8, opset_import: ["": 18]> g (float x) => (float y) { y = Neg (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    status, lines, err = call("verify", tmp_path)
    assert (status, lines) == (2, [])
    assert "is no model that damo_torchrec.onnx.export made" in err
