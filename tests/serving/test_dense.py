"""A dense part that does not go with its rows is refused."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from torchrec import EmbeddingBagConfig

import damo_torchrec as damo
from damo_torchrec.store.checkpoint_writer import CheckpointOptions
from served_models import predictor_of
from serving_cases import SGD


def dense_graph(card: Any, inputs: Any = (("pooled", ["batch", 4]),), kind: int = onnx.TensorProto.FLOAT) -> bytes:
    """A graph that gives its first input back."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs]
    output = helper.make_tensor_value_info("output", kind, inputs[0][1])
    node = helper.make_node("Identity", [inputs[0][0]], ["output"])
    graph = helper.make_graph([node], "graph", values, [output])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if card is not None:
        proto.metadata_props.add(key="damo_torchrec", value=card if isinstance(card, str) else json.dumps(card))
    return proto.SerializeToString()


def card(**changes: Any) -> dict[str, Any]:
    output = {"key": "a", "table": "t", "dim": 4, "pooling": "SUM", "unseen": "zeros"}
    lookup = {"kind": "EmbeddingBagCollection", "path": "ebc", "input": "features", "graph_inputs": ["pooled"]}
    return {
        "format_version": 1,
        "kind": "dense",
        "seed": 0,
        "step": 0,
        "features": {"features": {"keys": ["a"], "weighted": False}},
        "lookups": [{**lookup, "weighted": False, "padding": None, "outputs": [{**output, **changes}]}],
    } | {key: value for key, value in changes.items() if key in ("format_version", "kind", "seed", "lookups")}


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (b"no graph", damo.CorruptionError, "is no graph that ONNX Runtime can run"),
        (dense_graph(None), damo.CorruptionError, "has no metadata 'damo_torchrec'"),
        (dense_graph("é").replace("é".encode(), b"\xff\xff"), damo.CorruptionError, "metadata that are no text"),
        (dense_graph("{"), damo.CorruptionError, "does not say how to look up its inputs"),
        (dense_graph({"format_version": 1}), damo.CorruptionError, "does not say how to look up its inputs"),
        (dense_graph(card(format_version=2)), damo.CorruptionError, "format version 2; this version reads 1"),
        (dense_graph(card(kind="full")), damo.CorruptionError, "it is a full graph, expected a dense one"),
        (dense_graph(card(pooling="MAX")), damo.CorruptionError, "does not say how"),
        (dense_graph(card(), [("other", ["batch", 4])]), damo.CorruptionError, r"says that \['pooled'\] are inputs"),
        (dense_graph(card(), [("pooled", ["batch", 5])]), damo.CorruptionError, "is given float32 rows of 4"),
        (dense_graph(card(), [("pooled", ["ids", 4])]), damo.CorruptionError, "is given float32 rows of 4"),
        (dense_graph(card(), kind=onnx.TensorProto.DOUBLE), damo.CorruptionError, "is given float32 rows of 4"),
        (dense_graph(card(), kind=onnx.TensorProto.STRING), damo.CorruptionError, "which answers cannot have"),
        (dense_graph(card(seed=1)), damo.SchemaMismatchError, "the seed 1, expected 0"),
        (dense_graph(card(table="x")), damo.SchemaMismatchError, r"needs table 'x'; there are \['t'\]"),
        (dense_graph(card(dim=5)), damo.SchemaMismatchError, "table 't' with dim 5, but it has dim 4"),
        (dense_graph(card(key="b")), damo.CorruptionError, r"looks up \['b'\], which features does not have: \['a'\]"),
    ],
)
def test_a_dense_part_that_does_not_go_with_the_rows_is_refused(
    store: Any, tmp_path: Path, graph: bytes, error: type[Exception], message: str
) -> None:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=10, feature_names=["a"])]
    damo.EmbeddingBagCollection(tables, store=store, **SGD)
    path = store.session.checkpoint(tmp_path / "checkpoint", CheckpointOptions(lambda _: {"dense.onnx": graph}))
    with pytest.raises(error, match=message):
        predictor_of(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "store"]
